"""The loop of one stage: batches in, optimiser steps, numbers out, checkpoints now and then.

Before each step the ranks exchange what they hold (targets, unreadable samples, a signal, an error of the
data), so that all of them take the step, skip it, save or stop alike and none waits for another for ever.
"""

from __future__ import annotations

import dataclasses
import math
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from janus_plugins.core.errors import DataError, Interrupted, JanusPluginsError, PluginError
from janus_plugins.core.schema import StageBlock
from janus_plugins.sequence.batch import Batch
from janus_plugins.training.callbacks import Callbacks, Wishes
from janus_plugins.training.checkpoint import Checkpoints, Position
from janus_plugins.training.engine import Engine, StepOutcome, add_counts, step_counts
from janus_plugins.training.guard import StopSignals
from janus_plugins.training.metrics import Metrics
from janus_plugins.training.nonfinite import BadSteps
from janus_plugins.training.random_state import undisturbed
from janus_plugins.training.recipe import Recipe
from janus_plugins.training.world import World

ENOUGH_SAMPLES = 100
"""Samples to have seen before the share of unreadable ones can stop a run."""


@dataclass
class Tally:
    """Count over the whole run, resumptions included."""

    samples: int = 0
    bad_samples: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class Run:
    """Hold what lasts from the first stage to the last."""

    recipe: Recipe
    world: World
    checkpoints: Checkpoints
    metrics: Metrics
    signals: StopSignals
    bad_steps: BadSteps
    tally: Tally
    callbacks: Callbacks

    def facts(self) -> dict[str, Any]:
        """Return what every checkpoint records beside its position."""
        return {
            "tally": dataclasses.asdict(self.tally),
            "bad_steps": {"total": self.bad_steps.total, "in_a_row": self.bad_steps.in_a_row},
            "callbacks": self.callbacks.state(),
            "provenance": dict(self.recipe.provenance),
        }

    def settle(self, over: bool = False) -> None:
        """Let every rank stop alike between stages where a callback failed or asks for it. Collective.

        Args:
            over: whether training is over, so that there is nothing left to stop.
        """
        if self.callbacks:
            everyone = self.world.gather(self.callbacks.wishes())
            self.raise_failure(everyone)
            stop = next((each.run_stop for each in everyone if each.run_stop), None)
            if stop and not over:
                raise stopped_by(stop, self.callbacks.run.step)

    def raise_failure(self, everyone: Sequence[Wishes]) -> None:
        """Raise where a callback of any rank failed: its own error on its own rank."""
        if self.callbacks.failure is not None:
            raise self.callbacks.failure
        for rank, wishes in enumerate(everyone):
            if wishes.failure is not None:
                raise PluginError(f"rank {rank} stopped: {wishes.failure}")


@dataclass(frozen=True)
class Ready:
    """Say what one rank brings to a step. Plain data, exchanged between ranks."""

    counts: dict[str, int]
    samples: int
    bad: list[dict[str, Any]]
    signal: int
    error: str | None
    wishes: Wishes


class StageLoop:
    """Run one stage from a position to its end."""

    def __init__(self, run: Run, engine: Engine, start: Position, state: Mapping[str, Any] | None) -> None:
        self._run, self._engine = run, engine
        self._stage: StageBlock = run.recipe.stages[start.stage]
        self._block = run.recipe.engine
        self._position = self._saved = start
        self._state: Mapping[str, Any] = state or {}
        self._ahead: tuple[Any, JanusPluginsError | None] | None = None
        self._late = 0.0
        with undisturbed():
            self._batches: Iterator[Any] = run.world.together(
                lambda: iter(run.recipe.loader(self._stage, run.world, state or None))
            )

    def finish(self) -> Position:
        """Take every remaining step, or end early where a callback asks; return the position after the last.

        Raises:
            Interrupted: a signal arrived, or a callback stopped the run; a checkpoint was saved.
            PluginError: a callback failed; a checkpoint was saved.
            NonFiniteError: too many bad steps in a row.
            DataError: the data cannot be read, or too much of it.
        """
        started = time.perf_counter()
        before = self._run.tally.seconds.get(self._stage.name, 0.0)
        while self._position.step < self._stage.last_step and self._one_step():
            self._run.tally.seconds[self._stage.name] = before + time.perf_counter() - started
            every = self._block.save_every
            last = self._position.step == self._stage.last_step
            if every and self._position.total % every == 0 and not last:
                self._save()
        self._run.metrics.end_stage(self._stage.name)
        return self._position

    def _one_step(self) -> bool:
        """Take a step, unless a callback ends the stage before it; answer whether it was taken."""
        began = time.perf_counter()
        batch, error = self._ahead or self._next()
        waited = time.perf_counter() - began
        self._ahead, self._late = None, 0.0
        everyone = self._run.world.gather(self._ready(batch, error))
        if self._heed(everyone):
            return False
        counts = self._agree(everyone, error)
        self._position = Position(self._position.stage, self._position.step + 1, self._position.total + 1)
        self._state = batch.state
        outcome = None
        if any(counts.values()):
            meanwhile = self._look_ahead if self._run.world.works_aside else None
            with self._run.world.apart():
                outcome = self._engine.step(batch.micro, counts, self._position.step - 1, meanwhile)
        waited += self._late
        parts = self._run.world.gather((outcome, batch.tokens, batch.slots, waited))
        if outcome is not None:
            applied = all(part[0] is not None and part[0].applied for part in parts)
            if not applied and self._run.bad_steps.in_a_row == 0:
                self._run.metrics.say(
                    f"step {self._position.total} is skipped: its loss or gradient is not finite "
                    f"({self._run.bad_steps.total} skipped before)"
                )
            where = partial(self._where, batch.micro)
            self._run.bad_steps.note(applied, self._position.total, self._run.world.rank, batch.micro, where)
        self._record(parts, time.perf_counter() - began)
        self._sample()
        return True

    def _where(self, micro: Sequence[Batch]) -> str:
        """Say what of a step was the first not finite, on the first rank that has such."""
        try:
            here = self._engine.first_not_finite(micro)
        except (JanusPluginsError, RuntimeError) as error:  # as for want of memory: the batch is to be saved
            here = f"looking for what was not finite failed ({error})"
        everyone = self._run.world.gather(here)
        found = next((each for each in everyone if each is not None), None)
        return found or "all that components answered was finite, but not the gradient"

    def _look_ahead(self) -> None:
        """Fetch the next step's batch while the device works on this one.

        If the device has done its work before the batch is here, it waited, for as long at most.
        """
        if self._position.step == self._stage.last_step:
            return
        began = time.perf_counter()
        batch, error = self._next()
        if self._run.world.is_idle():
            self._late = time.perf_counter() - began
        if batch is not None:
            device = self._run.world.device
            batch = dataclasses.replace(batch, micro=tuple(each.to(device) for each in batch.micro))
        self._ahead = batch, error

    def _next(self) -> tuple[Any, JanusPluginsError | None]:
        try:
            with undisturbed():
                return next(self._batches), None
        except StopIteration:
            return None, DataError(f"stage {self._stage.name}: the data ended at step {self._position.step}")
        except JanusPluginsError as error:
            return None, error

    def _ready(self, batch: Any, error: JanusPluginsError | None) -> Ready:
        """Return what this rank brings to the step."""
        number, wishes = self._run.signals.received, self._run.callbacks.wishes()
        if batch is None:
            return Ready({}, 0, [], number, str(error), wishes)
        samples = sum(sum(part.num_samples.values()) for part in batch.micro)
        bad = [dataclasses.asdict(record) for record in batch.bad]
        return Ready(step_counts(batch.micro, self._stage.reconstruct), samples, bad, number, None, wishes)

    def _heed(self, everyone: list[Ready]) -> bool:
        """Stop alike where a signal or a callback says so; answer whether a callback ends the stage."""
        stopping = max(ready.signal for ready in everyone)
        if stopping:
            self._interrupt(stopping)
        wishes = [ready.wishes for ready in everyone]
        if any(each.failure for each in wishes):
            self._save()
            self._run.raise_failure(wishes)
        stop = next((each.run_stop for each in wishes if each.run_stop), None)
        if stop:
            self._save()
            raise stopped_by(stop, self._position.total)
        end = next((each.stage_end for each in wishes if each.stage_end), None)
        if end:
            self._run.metrics.say(f"stage {self._stage.name} ends after step {self._position.step}: {end}")
        return end is not None

    def _agree(self, everyone: list[Ready], error: JanusPluginsError | None) -> dict[str, int]:
        """Stop alike where a rank has no data, after saving, or return the targets of the whole step."""
        before = dataclasses.replace(self._run.tally)
        try:
            if error is not None:
                raise error
            for rank, ready in enumerate(everyone):
                if ready.error is not None:
                    raise DataError(f"rank {rank} stopped: {ready.error}")
            self._judge_data(everyone)
        except JanusPluginsError:
            self._run.tally = before  # this step's samples are counted when it is taken
            if self._position.total > 0:
                self._save()
            raise
        return add_counts([ready.counts for ready in everyone])

    def _judge_data(self, everyone: list[Ready]) -> None:
        tally, limit = self._run.tally, self._block.max_bad_samples
        bad = [record for ready in everyone for record in ready.bad]
        tally.samples += sum(ready.samples for ready in everyone)
        tally.bad_samples += len(bad)
        if bad:
            step = self._position.total + 1
            self._run.world.from_main(lambda: self._run.metrics.quarantine(bad, step))
        seen = tally.samples + tally.bad_samples
        if bad and seen >= ENOUGH_SAMPLES and tally.bad_samples > limit * seen:
            raise DataError(
                f"{tally.bad_samples} of {seen} samples could not be read, more than engine.max_bad_samples "
                f"({limit:g}) allows. The last: {bad[-1]['key']}: {bad[-1]['reason']}. All are named in "
                f"{self._run.metrics.quarantine_file}: mend them or raise the limit"
            )

    def _interrupt(self, number: int) -> None:
        name = signal.Signals(number).name
        self._save()
        raise Interrupted(
            f"stopped by {name} after step {self._position.total}; everything is saved: go on with --resume",
            number,
        )

    def _save(self) -> None:
        """Save this position, unless it is saved already (as the end of the stage before, say)."""
        fresh = self._position.step == 0 and self._position.stage > self._run.checkpoints.begun
        if fresh or (self._position == self._saved and self._position.total > 0):
            return
        run = self._run
        folder = run.checkpoints.save_step(self._position, self._engine, self._state, run.facts())
        self._saved = self._position
        run.callbacks.tell("on_checkpoint", folder)

    def _record(self, parts: list[tuple[StepOutcome | None, int, int, float]], seconds: float) -> None:
        outcomes = [part[0] for part in parts if part[0] is not None]
        tokens, slots = sum(part[1] for part in parts), sum(part[2] for part in parts)
        steps = self._stage.last_step
        row = {
            "step": self._position.total,
            "stage": self._stage.name,
            "stage_step": self._position.step,
            "stage_steps": steps,
            "loss": mean_losses(outcomes),
            "applied": all(outcome.applied for outcome in outcomes),
            "grad_norm": _number(outcomes[0].grad_norm) if outcomes else None,
            "rate": outcomes[0].rate if outcomes else None,
            "skipped_steps": self._run.bad_steps.total,
            "samples": self._run.tally.samples,
            "bad_samples": self._run.tally.bad_samples,
            "tokens": tokens,
            "tokens_per_second": tokens / seconds,
            "packing": tokens / slots if slots else 0.0,
            "data_wait": max(part[3] for part in parts) / seconds,
            "seconds": seconds,
            "seconds_left": self._seconds_left(seconds),
        }
        self._run.metrics.record(row)
        shown = self._run.callbacks.run
        shown.stage_step, shown.step = self._position.step, self._position.total
        self._run.callbacks.step_ended(row)

    def _seconds_left(self, latest: float) -> float:
        spent = self._run.tally.seconds.get(self._stage.name, 0.0) + latest
        return spent / self._position.step * (self._stage.last_step - self._position.step)

    def _sample(self) -> None:
        sampler, every = self._run.recipe.sampler, self._block.sample_every
        if sampler is None or not every or self._position.total % every:
            return
        module: nn.Module = self._engine.module
        modes = {name: part.training for name, part in module.named_modules()}
        with undisturbed():
            pictures = sampler(module.eval())
        for name, part in module.named_modules():
            part.training = modes[name]
        self._run.metrics.pictures(pictures, self._position.total)


def stopped_by(reason: str, step: int) -> Interrupted:
    """Return the error of a run that a callback stopped: saved, to be resumed, as after SIGTERM."""
    return Interrupted(
        f"stopped by {reason}, after step {step}; everything is saved: go on with --resume", signal.SIGTERM
    )


def mean_losses(outcomes: list[StepOutcome]) -> dict[str, float | None]:
    """Return the mean loss of each label over all ranks; None where it is not finite (JSON has no NaN)."""
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    for outcome in outcomes:
        for label, value in outcome.sums.items():
            sums[label] = sums.get(label, 0.0) + value
            counts[label] = counts.get(label, 0.0) + outcome.counts[label]
    return {label: _number(sums[label] / counts[label]) for label in sorted(sums) if counts[label]}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
