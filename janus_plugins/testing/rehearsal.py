"""A run of made-up numbers that a callback is rehearsed in: two short stages, checkpoints, an end.

Told by the same code as in training, without an engine: nothing is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from janus_plugins.core.contracts import TrainingRun
from janus_plugins.core.plan import Part
from janus_plugins.testing.case import OWNER, Case
from janus_plugins.testing.report import Broken
from janus_plugins.testing.tiny_model import TinyModel
from janus_plugins.training.callbacks import Callbacks

STAGES = ("first", "second")
STEPS = 12
SAVE_EVERY = 5
FALLING = 4
"""Steps of a stage in which the loss falls; it is flat from there on."""


class Rehearsal:
    """Play a run for one rank's callback, and note what it asks for.

    Args:
        case: the callback.
        out: the run's folder.
        rank: which of `ranks` processes this is.
        ranks: number of processes.

    Attributes:
        asked: (step of the run, "end_stage" or "stop") of each request.
        position: index of the stage, and steps done in it.
    """

    def __init__(self, case: Case, out: Path, rank: int = 0, ranks: int = 1) -> None:
        part = Part(case.address, case.spec, OWNER, case.config, case.facts)
        self._case = case
        self.run = TrainingRun(out, rank=rank, world_size=ranks)
        self.callbacks = Callbacks([part], self.run)
        self.asked: list[tuple[int, str]] = []
        self.position = (0, 0)

    @cached_property
    def model(self) -> Any:
        """Return the model that the callback is shown: a tiny one of partners."""
        return TinyModel(self._case).model

    @property
    def stages(self) -> tuple[str, ...]:
        """Return the names of the stages: those that the callback's options speak of, or two."""
        return tuple(self._case.facts.stages) or STAGES

    def tell(self, moment: str, *values: Any) -> None:
        """Tell of one moment.

        Raises:
            Broken: the callback raised.
        """
        self.callbacks.tell(moment, *values)
        self._check(f"{moment} to return")

    def play(self, steps: int | None = None) -> None:
        """Begin, or go on, and play so many steps, or to the end of the run."""
        self.tell("on_train_start")
        left = steps
        while self.position[0] < len(self.stages) and left != 0:
            stage, done = self.position
            self.run.stage, self.run.stage_step, self.run.stage_steps = self.stages[stage], done, STEPS
            self.run.model = self.model
            self.tell("on_stage_start")
            while done < STEPS and left != 0:
                done, left = done + 1, None if left is None else left - 1
                ended = self._step(stage, done)
                if ended:
                    break
            self.position = (stage, done)
            if done == STEPS or self.run.stage_end:
                self._end_stage(stage)

    def end(self, error: BaseException | None = None) -> None:
        """Tell of the end of training."""
        for problem in self.callbacks.train_ended(error):
            raise Broken("on_train_end to return", problem)

    def _step(self, stage: int, done: int) -> bool:
        """Take one step; answer whether the stage ends with it."""
        self.run.stage_step, self.run.step = done, self.run.step + 1
        self.callbacks.step_ended(numbers(self.run, STEPS * stage + done))
        self._check("on_step_end to return")
        if self.run.step % SAVE_EVERY == 0:
            self._save(f"step_{self.run.step}")
        if self.run.run_stop:
            self.asked.append((self.run.step, "stop"))
            self.run.run_stop = None
        if self.run.stage_end:
            self.asked.append((self.run.step, "end_stage"))
        return self.run.stage_end is not None

    def _end_stage(self, stage: int) -> None:
        self.run.stage_end = None
        self.tell("on_stage_end")
        self.run.model = None
        self._save(f"stage_{stage}")
        self.position = (stage + 1, 0)

    def _save(self, name: str) -> None:
        self.callbacks.state()
        self._check("state_dict to return plain data (JSON)")
        folder = self.run.out / "checkpoints" / name
        folder.mkdir(parents=True, exist_ok=True)
        self.tell("on_checkpoint", folder)

    def _check(self, wanted: str) -> None:
        if self.callbacks.failure is not None:
            raise Broken(wanted, str(self.callbacks.failure))


def numbers(run: TrainingRun, at: int) -> Mapping[str, Any]:
    """Return a step's line of metrics.jsonl; what it says depends on `at` alone."""
    loss = 3.0 - 0.5 * min(run.stage_step, FALLING)
    return {
        "step": run.step,
        "stage": run.stage,
        "stage_step": run.stage_step,
        "stage_steps": run.stage_steps,
        "loss": {"generation.thing": 2 * loss, "text.text": loss if at % 7 else None},
        "applied": bool(at % 7),
        "grad_norm": 1.0 / at,
        "rate": 1e-4,
        "skipped_steps": at // 7,
        "samples": 8 * at,
        "bad_samples": 0,
        "tokens": 512,
        "tokens_per_second": 5120.0,
        "packing": 0.9,
        "data_wait": 0.01,
        "seconds": 0.1,
        "seconds_left": 0.1 * (run.stage_steps - run.stage_step),
    }
