"""Compare the mean loss of each window of steps with the best window so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from janus_plugins.callbacks.stop_on_plateau.spec import StopOnPlateauConfig
from janus_plugins.core.errors import RunFileError
from janus_plugins.core.facts import CallbackFacts
from janus_plugins.core.suggest import nearest

if TYPE_CHECKING:
    from janus_plugins.core.contracts import TrainingRun

WHOLE = "reconstruct.loss"
"""What an encoder minimises in a stage that reconstructs; beside it stand its terms, and what it counts."""


@dataclass
class _Watch:
    """Hold what is known of one stage; plain data, so that it is the state too."""

    stage: str = ""
    steps: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    best: float | None = None
    without: int = 0


class StopOnPlateau:
    """End a stage after `patience` windows that were not better than the best."""

    def __init__(self, config: StopOnPlateauConfig, facts: CallbackFacts) -> None:
        self._config = config
        self._watch = _Watch()

    def on_stage_start(self, run: TrainingRun) -> None:
        """Begin anew, unless this stage is being gone on with."""
        if self._watch.stage != run.stage:
            self._watch = _Watch(run.stage)

    def on_step_end(self, run: TrainingRun, metrics: Mapping[str, Any]) -> None:
        """Take a step's losses in, and judge at the end of each window."""
        if self._config.stages is not None and run.stage not in self._config.stages:
            return
        watch = self._watch
        watch.steps += 1
        for label, value in metrics["loss"].items():
            if value is not None:  # not finite
                watch.sums[label] = watch.sums.get(label, 0.0) + value
                watch.counts[label] = watch.counts.get(label, 0) + 1
        if watch.steps == self._config.window:
            self._judge(run, self._mean())
            watch.steps, watch.sums, watch.counts = 0, {}, {}

    def _mean(self) -> float | None:
        """Return the window's loss, or None where no step had a finite one."""
        means = {label: total / self._watch.counts[label] for label, total in self._watch.sums.items()}
        wanted = self._config.loss
        if wanted is None and WHOLE in means:
            return means[WHOLE]
        if wanted is None:
            return sum(means.values()) / len(means) if means else None
        if means and wanted not in means:
            raise RunFileError(
                f"loss: no step of stage {self._watch.stage!r} had a loss {wanted!r}; there were "
                f"{sorted(means)}.{nearest(wanted, means)}"
            )
        return means.get(wanted)

    def _judge(self, run: TrainingRun, mean: float | None) -> None:
        if mean is None:
            return
        watch, config = self._watch, self._config
        if watch.best is None or mean < watch.best - config.improvement * abs(watch.best):
            watch.best, watch.without = mean, 0
            return
        watch.without += 1
        if watch.without >= config.patience:
            ask = run.end_stage if config.then == "end-stage" else run.stop
            ask(
                f"the loss was no lower than {watch.best:.4g} for {watch.without} windows of {config.window} "
                f"steps (now {mean:.4g})"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the watch as plain data."""
        return asdict(self._watch)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on watching."""
        self._watch = _Watch(**state)
