"""Callbacks for toy runs: one that notes its moments, one that asks, one that fails."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from janus_plugins import CONTRACT_VERSION, CallbackFacts, ComponentConfig, ComponentSpec, Kind
from janus_plugins.core.contracts import TrainingRun
from janus_plugins.core.plan import Owner, Part


class WatchConfig(ComponentConfig):
    at: int = 0
    rank: int | None = None
    does: str = ""

    def facts(self) -> CallbackFacts:
        return CallbackFacts()


class Noting:
    """Notes every moment; restless: it draws from every global generator."""

    notes: ClassVar[list[tuple[Any, ...]]] = []

    def __init__(self, config: WatchConfig, facts: CallbackFacts) -> None:
        self.steps = 0

    def note(self, moment: str, run: TrainingRun, *more: Any) -> None:
        random.random(), np.random.random(), torch.rand(1)
        self.notes.append((moment, run.stage, run.stage_step, run.step, *more))

    def on_train_start(self, run: TrainingRun) -> None:
        self.note("train_start", run)

    def on_stage_start(self, run: TrainingRun) -> None:
        assert run.model is not None
        self.note("stage_start", run)

    def on_step_end(self, run: TrainingRun, metrics: Mapping[str, Any]) -> None:
        assert (metrics["step"], metrics["stage_step"]) == (run.step, run.stage_step)
        self.steps += 1
        self.note("step", run, self.steps)

    def on_checkpoint(self, run: TrainingRun, folder: Path) -> None:
        assert (folder / "manifest.json").is_file()
        self.note("checkpoint", run, folder.name)

    def on_stage_end(self, run: TrainingRun) -> None:
        self.note("stage_end", run)

    def on_train_end(self, run: TrainingRun, error: BaseException | None) -> None:
        self.note("train_end", run, type(error).__name__ if error else "")

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps = state["steps"]


class Acting:
    """Does one thing at one step of the run, on one rank or on all."""

    def __init__(self, config: WatchConfig, facts: CallbackFacts) -> None:
        self.config = config

    def on_step_end(self, run: TrainingRun, metrics: Mapping[str, Any]) -> None:
        if run.step != self.config.at or self.config.rank not in (None, run.rank):
            return
        if self.config.does == "raise":
            raise ValueError("it broke")
        if self.config.does == "edit":
            metrics["loss"] = {}  # type: ignore[index]
        if self.config.does == "stop":
            run.stop("enough")
        if self.config.does == "end":
            run.end_stage("enough of this stage")


class Misspelt:
    def __init__(self, config: WatchConfig, facts: CallbackFacts) -> None:
        pass

    def on_step_ended(self, run: TrainingRun, metrics: Mapping[str, Any]) -> None: ...


class Unsaveable(Noting):
    def state_dict(self) -> dict[str, Any]:
        return {"steps": {1, 2}}


class Stubborn(Noting):
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        raise KeyError("another version")


class FailingAtTheEnd(Noting):
    def on_train_end(self, run: TrainingRun, error: BaseException | None) -> None:
        raise OSError("nowhere to write")


def watcher(kind: type, **options: Any) -> Part:
    """Resolve a callback of this file, as wiring does."""
    name = kind.__name__.lower()
    spec = ComponentSpec(
        kind=Kind.CALLBACK,
        name=name,
        config=WatchConfig,
        factory=f"{__name__}:{kind.__name__}",
        contract=CONTRACT_VERSION,
    )
    return Part(
        f"callbacks.{name}", spec, Owner("acme-watch", "2.1"), WatchConfig(**options), CallbackFacts()
    )
