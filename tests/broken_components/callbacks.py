"""Callbacks that each break one rule, and one that breaks none."""

from __future__ import annotations

from typing import Any

import torch


class Keeping:
    """Ends every stage after its seventh step, across resumptions."""

    def __init__(self, config: Any, facts: Any) -> None:
        self.steps = 0

    def on_stage_start(self, run: Any) -> None:
        self.steps = run.stage_step

    def on_step_end(self, run: Any, metrics: Any) -> None:
        self.steps += 1
        if self.steps == 7:
            run.end_stage("seven steps")

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: Any) -> None:
        self.steps = state["steps"]


class Idle:
    def __init__(self, config: Any, facts: Any) -> None:
        pass


class Misspelt(Keeping):
    def on_step_ends(self, run: Any, metrics: Any) -> None: ...


class Greedy(Keeping):
    def on_checkpoint(self, run: Any, folder: Any, weights: Any) -> None: ...


class HalfStored(Idle):
    def on_stage_end(self, run: Any) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}


class Raising(Keeping):
    def on_stage_end(self, run: Any) -> None:
        raise LookupError("no such thing")


class Tensors(Keeping):
    def state_dict(self) -> dict[str, Any]:
        return {"steps": torch.tensor(self.steps)}


class Littering(Keeping):
    def on_train_end(self, run: Any, error: Any) -> None:
        (run.out / f"rank_{run.rank}.txt").write_text("here")


class Editing(Keeping):
    def on_stage_start(self, run: Any) -> None:
        super().on_stage_start(run)
        with torch.no_grad():
            next(run.model.parameters()).zero_()


class Rounding(Keeping):
    def load_state_dict(self, state: Any) -> None:
        self.steps = state["steps"] // 2


class Forgetting(Idle):
    """Counts steps that a resumed run no longer knows of."""

    def __init__(self, config: Any, facts: Any) -> None:
        self.steps = 0

    def on_step_end(self, run: Any, metrics: Any) -> None:
        self.steps += 1
        if self.steps == 7:
            run.end_stage("seven steps")


class Partial(Keeping):
    """Asks on the main rank alone."""

    def on_step_end(self, run: Any, metrics: Any) -> None:
        if run.rank == 0:
            super().on_step_end(run, metrics)
