"""Stop before the time is up: the next step must still fit, going by the longest one so far."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from janus_plugins.callbacks.time_limit.spec import TimeLimitConfig
from janus_plugins.core.facts import CallbackFacts

if TYPE_CHECKING:
    from janus_plugins.core.contracts import TrainingRun


class TimeLimit:
    """Ask for a stop when another step as long as the longest would end too late."""

    def __init__(self, config: TimeLimitConfig, facts: CallbackFacts) -> None:
        self._limit = 60 * config.minutes
        self._started = time.monotonic()
        self._longest = 0.0

    def on_train_start(self, run: TrainingRun) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_step_end(self, run: TrainingRun, metrics: Mapping[str, Any]) -> None:
        """Look at the clock."""
        self._longest = max(self._longest, metrics["seconds"])
        spent = time.monotonic() - self._started
        if spent + self._longest > self._limit:
            run.stop(f"{spent / 60:.1f} of {self._limit / 60:g} minutes are spent")
