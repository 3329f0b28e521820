"""Which samples each step of a stage draws, as arithmetic on plain numbers.

A step's draws depend on the stage, the sizes of its sources and the step alone: never on workers
or ranks. What changes from step to step is a small `MixState`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from janus_plugins.core.errors import DataError, RunFileError
from janus_plugins.core.plan import RunPlan
from janus_plugins.core.schema import StageBlock, Window
from janus_plugins.data.order import apportion

EVERYTHING = "reconstruct"
"""The one group of a stage that draws items from every source, without a mix."""

GROUPS = "mix"
"""Where a state keeps what is owed to the groups themselves."""


@dataclass(frozen=True)
class Share:
    """Say how a stage draws from one source.

    Attributes:
        name: the data entry.
        group: the task whose share it divides with others.
        weight: its weight within the group.
        size: its number of samples; None where it is read in order.
        window: when it is drawn from.
    """

    name: str
    group: str
    weight: Fraction
    size: int | None
    window: Window

    def active(self, step: int) -> bool:
        """Answer whether a step draws from it."""
        return self.window.after <= step and (self.window.until is None or step < self.window.until)


@dataclass(frozen=True)
class Draws:
    """Hold consecutive positions [first, first + count) of one source."""

    source: str
    first: int
    count: int


@dataclass(frozen=True)
class MixState:
    """Hold what the next step's draws depend on.

    Attributes:
        step: the next step.
        drawn: how many samples of each source were drawn.
        owed: what rounding still owes: under `GROUPS` each group, under a group each of its sources.
    """

    step: int = 0
    drawn: Mapping[str, int] = field(default_factory=dict)
    owed: Mapping[str, Mapping[str, Fraction]] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Return the state as data that any file format can hold."""
        return {
            "step": self.step,
            "drawn": dict(self.drawn),
            "owed": {
                group: {name: str(share) for name, share in shares.items()}
                for group, shares in self.owed.items()
            },
        }

    @staticmethod
    def read(plain: Mapping[str, Any]) -> MixState:
        """Read what `plain` returned."""
        owed = {
            group: {name: Fraction(share) for name, share in shares.items()}
            for group, shares in plain["owed"].items()
        }
        return MixState(int(plain["step"]), dict(plain["drawn"]), owed)


@dataclass(frozen=True)
class Mixture:
    """Hold a stage's groups and sources.

    Attributes:
        batch: samples of one step, over all ranks.
        groups: each group's share of every step.
        shares: the sources.
    """

    batch: int
    groups: Mapping[str, Fraction]
    shares: tuple[Share, ...]

    def draw(self, state: MixState) -> tuple[tuple[Draws, ...], MixState]:
        """Return the draws of the state's step, and the state after it.

        Group counts are within 1 of their exact share in every step, and so are source counts
        within their group's.
        """
        drawn, owed = dict(state.drawn), dict(state.owed)
        counts, owed[GROUPS] = apportion(self.batch, self.groups, owed.get(GROUPS, {}))
        draws: list[Draws] = []
        for group, count in counts.items():
            weights = {
                share.name: share.weight
                for share in self.shares
                if share.group == group and share.active(state.step)
            }
            given, owed[group] = apportion(count, weights, owed.get(group, {}))
            for name, number in given.items():
                if number:
                    draws.append(Draws(name, drawn.get(name, 0), number))
                    drawn[name] = drawn.get(name, 0) + number
        return tuple(draws), MixState(state.step + 1, drawn, owed)


def stage_sources(plan: RunPlan, stage: StageBlock) -> dict[str, str]:
    """Return the data entries that a stage draws from, each with its group. Test sets never are."""
    found: dict[str, str] = {}
    mixed = any(stage.mix.values())
    for name, data in plan.data.items():
        if data.block.split != "train" or (stage.sources is not None and name not in stage.sources):
            continue
        if mixed:
            if stage.mix.get(data.block.task, 0) > 0:
                found[name] = data.block.task
        elif stage.reconstruct in data.facts.generation or (
            stage.sources is not None and stage.reconstruct in data.facts.understanding
        ):
            found[name] = EVERYTHING
    return found


def stage_mixture(plan: RunPlan, stage: StageBlock, sizes: Mapping[str, int | None]) -> Mixture:
    """Return a stage's mixture.

    Args:
        plan: the run.
        stage: the stage.
        sizes: samples of each source that the stage draws from; None where it is read in order.

    Raises:
        RunFileError: at some step a task has no source to draw from.
        DataError: a source that is read in order shares a task with others and has no weight.
    """
    groups: dict[str, Fraction] = {
        name: Fraction(str(ratio)) for name, ratio in stage.mix.items() if ratio > 0
    }
    sources = stage_sources(plan, stage)
    windows = stage.sources or {}
    shares = [
        Share(name, group, _weight(name, group, sources, windows, sizes), sizes[name], _window(windows, name))
        for name, group in sources.items()
    ]
    mixture = Mixture(stage.batch, groups or {EVERYTHING: Fraction(1)}, tuple(shares))
    _check_gaps(mixture, stage)
    return mixture


def _window(windows: Mapping[str, Window], name: str) -> Window:
    return windows.get(name, Window())


def _weight(
    name: str,
    group: str,
    sources: Mapping[str, str],
    windows: Mapping[str, Window],
    sizes: Mapping[str, int | None],
) -> Fraction:
    weight = _window(windows, name).weight
    if weight is not None:
        return Fraction(str(weight))
    size = sizes[name]
    if size is not None:
        return Fraction(size)
    if list(sources.values()).count(group) > 1:
        raise DataError(
            f"data.{name} is read in order, so its size is unknown, and it shares {group!r} with others; "
            f"give it a weight: sources: {{{name}: {{weight: 1}}}}"
        )
    return Fraction(1)


def _check_gaps(mixture: Mixture, stage: StageBlock) -> None:
    windows = [share.window for share in mixture.shares]
    edges = {0, *(window.after for window in windows), *(window.until or 0 for window in windows)}
    for step in sorted(edge for edge in edges if edge < stage.last_step):
        for group in mixture.groups:
            if not any(share.group == group and share.active(step) for share in mixture.shares):
                raise RunFileError(
                    f"stages.{stage.name}: {group!r} has no source to draw from at step {step}; "
                    "add one under data, or widen a window under sources"
                )
