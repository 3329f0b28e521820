"""A tiny real model whose two ranks see different modalities; alone, it sees both as two micro-batches.

As a script: one rank of such a run, under a launcher's variables. Arguments: folder, ZeRO stage.
"""

from __future__ import annotations

import dataclasses
import io
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from janus_plugins.core.plan import RunPlan
from janus_plugins.core.runfile import load_run
from janus_plugins.core.schema import EngineBlock, StageBlock
from janus_plugins.core.wiring import resolve
from janus_plugins.data.loader import StepBatch, StepLoader
from janus_plugins.model.compose import build_tokenizer_for
from janus_plugins.training.plan_recipe import plan_recipe
from janus_plugins.training.recipe import Recipe
from janus_plugins.training.run import TrainResult, run_recipe
from janus_plugins.training.world import World, close_world, open_world

MIXES: tuple[dict[str, float], ...] = ({"text": 1.0}, {"generation": 1.0})
"""What the first and the second share of every step hold: words alone, pictures to make alone."""

STAGE = StageBlock(
    name="mixed",
    learn={"language_model": 1e-3, "understanding": 1e-3, "generation.image.adapter": 1e-3,
           "generation.image.head": 1e-3},
    mix={"text": 1, "understanding": 1, "generation": 1},
    steps=4,
    batch=4,
    loss_mean="task",
    max_length=64,
)  # fmt: skip


def mixed_recipe(tiny: Path, zero_stage: int, world: World) -> Recipe:
    """Make a recipe of one stage in which every rank (or micro-batch) has a mix of its own."""
    plan = resolve(load_run(tiny))
    engine = {"accumulate": 2 // world.size, "deepspeed": {"zero_optimization": {"stage": zero_stage}}}
    return dataclasses.replace(
        plan_recipe(plan),
        stages=(
            STAGE.model_copy(update={"learn": {**STAGE.learn, **dict.fromkeys(plan.model.starts(), 1e-3)}}),
        ),
        engine=EngineBlock(**engine),
        loader=lambda stage, world, state: mixed_steps(plan, stage, world),
        save_native=None,
    )


def mixed_steps(plan: RunPlan, stage: StageBlock, world: World) -> Iterator[StepBatch]:
    tokenizer: Any = build_tokenizer_for(plan)
    shares = [iter(StepLoader(plan, tokenizer, stage.model_copy(update={"mix": mix}))) for mix in MIXES]
    for steps in zip(*shares, strict=True):
        mine = steps if world.size == 1 else (steps[world.rank],)
        micro = tuple(batch for step in mine for batch in step.micro)
        yield dataclasses.replace(mine[0], micro=micro)


def run_mixed(tiny: Path, out: Path, zero_stage: int, world: World) -> TrainResult:
    torch.set_num_threads(1)
    console = Console(file=io.StringIO())
    return run_recipe(mixed_recipe(tiny, zero_stage, world), out, world, console=console)


def ranks(tiny: Path, out: Path, zero_stage: int) -> None:
    run_mixed(tiny, out, zero_stage, open_world())
    close_world()


__all__ = ["MIXES", "STAGE", "Mapping", "run_mixed"]

if __name__ == "__main__":
    ranks(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
