"""A run's callbacks: told of its moments, asked for their state, heeded in what they request.

What one raises is kept as a failure that names its plugin, and reaches the loop at the next place where the
ranks agree, so that all of them save and stop alike. Knows neither the engine nor what a callback does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from inspect import signature
from types import MappingProxyType
from typing import Any

from janus_plugins.core.catalogue import load_factory
from janus_plugins.core.contracts import Callback, TrainingRun
from janus_plugins.core.errors import PluginError
from janus_plugins.core.plan import Part
from janus_plugins.core.suggest import nearest
from janus_plugins.training.random_state import undisturbed

MOMENTS = tuple(name for name in vars(Callback) if name.startswith("on_"))
"""The methods that a callback may have, besides those of its state."""


@dataclass(frozen=True)
class Wishes:
    """Say what one rank's callbacks want before the next step. Plain data, exchanged between ranks."""

    failure: str | None = None
    run_stop: str | None = None
    stage_end: str | None = None


class Callbacks:
    """Hold the callbacks of a run on one rank.

    Args:
        parts: the resolved callbacks, in the order in which they are told.
        run: what they are shown, and make their requests to.

    Attributes:
        run: the same.
        failure: what the first one to fail raised; from then on none is told of anything but the end.
    """

    def __init__(self, parts: Iterable[Part], run: TrainingRun) -> None:
        self.run = run
        self.failure: PluginError | None = None
        self._watching: list[tuple[Part, Any]] = [(part, _built(part)) for part in parts]

    def __bool__(self) -> bool:
        return bool(self._watching)

    def tell(self, moment: str, *values: Any) -> None:
        """Call one moment's method of every callback that has it. `values` follow the run."""
        for part, callback in self._watching:
            if self.failure is None and hasattr(callback, moment):
                self._call(part, callback, moment, self.run, *values)

    def step_ended(self, metrics: Mapping[str, Any]) -> None:
        """Tell of a step's numbers, which nobody may change."""
        if self._watching:
            self.tell("on_step_end", MappingProxyType(dict(metrics)))

    def train_ended(self, error: BaseException | None) -> list[str]:
        """Tell every callback that training is over; return what went wrong in telling it."""
        problems: list[str] = []
        for part, callback in self._watching:
            if hasattr(callback, "on_train_end"):
                self.failure = None
                self._call(part, callback, "on_train_end", self.run, error)
                problems += [] if self.failure is None else [str(self.failure)]
        return problems

    def wishes(self) -> Wishes:
        """Return what this rank's callbacks want."""
        failure = None if self.failure is None else str(self.failure)
        return Wishes(failure, self.run.run_stop, self.run.stage_end)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint records: every callback's state by label, and an unheeded request."""
        states = {}
        for part, callback in self._watching:
            if hasattr(callback, "state_dict"):
                states[part.address.partition(".")[2]] = self._state(part, callback)
        return {"states": states, "stage_end": self.run.stage_end}

    def _state(self, part: Part, callback: Any) -> Any:
        """Return one state as plain data; None, and a failure, where there is none to be had."""
        try:
            with undisturbed():
                return json.loads(json.dumps(callback.state_dict(), allow_nan=False))
        except Exception as error:
            self.failure = self.failure or _failed(part, "state_dict", error)
            return None

    def load(self, saved: Mapping[str, Any], inside_stage: bool) -> None:
        """Go on from what `state` returned; a callback that is new to the run begins anew.

        Raises:
            PluginError: naming a callback that cannot go on.
        """
        states = saved.get("states", {})
        for part, callback in self._watching:
            state = states.get(part.address.partition(".")[2])
            if state is not None and hasattr(callback, "load_state_dict"):
                try:
                    callback.load_state_dict(state)
                except Exception as error:
                    raise _failed(part, "load_state_dict", error) from error
        if inside_stage:
            self.run.stage_end = saved.get("stage_end")

    def _call(self, part: Part, callback: Any, moment: str, *values: Any) -> None:
        asked = self.run.stage_end, self.run.run_stop
        try:
            with undisturbed():
                getattr(callback, moment)(*values)
        except Exception as error:
            self.failure = _failed(part, moment, error)
            return
        if self.run.stage_end != asked[0]:
            self.run.stage_end = f"{_label(part)}: {self.run.stage_end}"
        if self.run.run_stop != asked[1]:
            self.run.run_stop = f"{_label(part)}: {self.run.run_stop}"


def misspelt(callback: object) -> list[str]:
    """Describe methods that look like moments and are none, or that take other arguments."""
    problems = []
    for name in dir(callback):
        method = getattr(callback, name)
        if not (name.startswith("on_") and callable(method)):
            continue
        if name not in MOMENTS:
            problems.append(f"{name}() is no moment.{nearest(name, MOMENTS)}")
            continue
        wanted = len(signature(getattr(Callback, name)).parameters) - 1
        try:
            signature(method).bind(*range(wanted))
        except TypeError as error:
            problems.append(f"{name}() is called with {wanted} arguments: {error}")
    return problems


def _built(part: Part) -> Any:
    """Build a callback.

    Raises:
        PluginError: it cannot be built, or has a method that looks like a moment and is none.
    """
    factory = load_factory(part.spec)
    try:
        callback = factory(part.config, part.facts)
    except Exception as error:
        raise _failed(part, "its factory", error) from error
    problems = misspelt(callback)
    if problems:
        raise PluginError(
            f"{_label(part)} of {_owner(part)}: {'; '.join(problems)} Moments: {', '.join(MOMENTS)}"
        )
    return callback


def _failed(part: Part, moment: str, error: Exception) -> PluginError:
    made = PluginError(
        f"{_label(part)} of {_owner(part)} failed in {moment}: {type(error).__name__}: {error}"
    )
    made.__cause__ = error
    return made


def _label(part: Part) -> str:
    return f"{part.address} ({part.spec.kind}/{part.spec.name})"


def _owner(part: Part) -> str:
    return f"{part.owner.distribution} {part.owner.version}"
