"""What an evaluation task reads of its entry: options, samples, and a sample's items as `ask` takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from janus_plugins.core.errors import RunFileError
from janus_plugins.core.samples import Item, Sample
from janus_plugins.data.sources import open_source

if TYPE_CHECKING:
    from janus_plugins.core.contracts import Source
    from janus_plugins.model.unified import UnifiedModel


class Options(BaseModel):
    """Refuse unknown options."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Settings = TypeVar("Settings", bound=Options)


def parsed(kind: type[Settings], options: Mapping[str, Any], source: str) -> Settings:
    """Return a task's options, or raise `RunFileError` naming the source that it runs on."""
    try:
        return kind.model_validate(options)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()]
        raise RunFileError(f"evaluation on {source}: " + "; ".join(lines)) from None


def samples_of(model: UnifiedModel, name: str) -> list[Sample]:
    """Return every sample of a data entry."""
    source: Source = open_source(model.plan.data[name].part)
    return [source[index] for index in range(len(source))]


def columns(items: Sequence[Sequence[Item]]) -> dict[str, list[list[object]]] | None:
    """Turn a list of items a question into, by modality, a list of values a question."""
    names = sorted({item.modality for row in items for item in row})
    return {
        name: [[item.value for item in row if item.modality == name] for row in items] for name in names
    } or None
