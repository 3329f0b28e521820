"""Which keys and values the installed DeepSpeed takes.

DeepSpeed ignores a key that it does not know at the top, so that a misspelt `zero_optimization` trains
without ZeRO and says nothing. There is no list of its keys: they are those that it asks a configuration for.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from janus_plugins.core.errors import RunFileError
from janus_plugins.core.suggest import nearest

_ELSEWHERE = frozenset({"data_parallel_size", "sequence_parallel_size"})
"""What `deepspeed.initialize` itself reads."""


def check_deepspeed(user: Mapping[str, Any], whole: Mapping[str, Any]) -> None:
    """Let DeepSpeed read a configuration before anything is built.

    Args:
        user: the run file's `engine.deepspeed`.
        whole: the configuration that it becomes.

    Raises:
        RunFileError: DeepSpeed would ignore a key, or refuses a key or a value.
    """
    import deepspeed

    known = _known_keys()
    for key in user:
        if key not in known:
            raise RunFileError(
                f"engine.deepspeed.{key}: DeepSpeed {deepspeed.__version__} reads no such key and would "
                f"ignore it.{nearest(key, known)}"
            )
    # Without the batch of all ranks, which DeepSpeed would compare with the ranks that are there.
    asked = _Asked({key: copy.deepcopy(value) for key, value in whole.items() if key != "train_batch_size"})
    try:
        deepspeed.DeepSpeedConfig(asked)
    except ValidationError as error:
        raise RunFileError("\n".join(_described(error, asked))) from error
    except Exception as error:  # assertions, type errors: whatever a value makes it run into
        raise RunFileError(f"{asked.place()}: DeepSpeed refuses it: {error}") from error


@cache
def _known_keys() -> frozenset[str]:
    """Return every key at the top that DeepSpeed looks for."""
    import deepspeed

    asked = _Asked({"train_micro_batch_size_per_gpu": 1})
    deepspeed.DeepSpeedConfig(asked)
    return frozenset(asked.names) | _ELSEWHERE


class _Asked(dict[str, Any]):
    """Note which keys a configuration is asked for, in order; copies note in the same place."""

    def __init__(self, values: Mapping[str, Any], names: dict[str, None] | None = None) -> None:
        super().__init__(values)
        self.names = {} if names is None else names

    @property
    def latest(self) -> str:
        """Return the key that was asked for last."""
        return next(reversed(self.names))

    def place(self) -> str:
        """Return what was asked for last in the run file's words; the block as a whole if it is not there."""
        if not super().__contains__(self.latest):
            return "engine.deepspeed"
        return f"engine.deepspeed.{self.latest} is {super().__getitem__(self.latest)!r}"

    def _note(self, key: Any) -> None:
        self.names.pop(key, None)
        self.names[key] = None

    def __contains__(self, key: object) -> bool:
        self._note(key)
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self._note(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._note(key)
        return super().get(key, default)

    def keys(self) -> Any:
        return self

    def __copy__(self) -> _Asked:
        return _Asked(self, self.names)


def _described(error: ValidationError, asked: _Asked) -> Iterator[str]:
    """Say each thing that one of DeepSpeed's own models refuses, by its place in the run file."""
    for each in error.errors():
        place = [str(part) for part in each["loc"]]
        inside = place if place and dict.__contains__(asked, place[0]) else [asked.latest, *place]
        address = ".".join(("engine.deepspeed", *inside))
        if each["type"] == "extra_forbidden":
            hint = nearest(place[-1], _fields(error.title, place[:-1]))
            yield f"{address}: DeepSpeed has no such key.{hint}"
        else:
            yield f"{address} is {each['input']!r}: {each['msg']}"


def _fields(title: str, place: Sequence[str]) -> set[str]:
    """Return the keys of a block, given the name of DeepSpeed's model and where in it the block lies."""
    model = next((each for each in _models(BaseModel) if each.__name__ == title), None)
    for key in place:
        fields = model.model_fields if model else {}
        field = next((one for name, one in fields.items() if key in (name, one.alias)), None)
        kinds = () if field is None else (field.annotation, *get_args(field.annotation))
        model = next((each for each in kinds if isinstance(each, type) and issubclass(each, BaseModel)), None)
    fields = model.model_fields if model else {}
    return {*fields, *(one.alias for one in fields.values() if one.alias)}


def _models(root: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for each in root.__subclasses__():
        if each.__module__.startswith("deepspeed."):
            yield each
        yield from _models(each)
