"""As a script: one rank of a toy run with LoRA and a running average, or of a run that precomputes first.

Arguments: "tuned" FOLDER ZERO-STAGE, or "answered" FOLDER ZERO-STAGE RUN.yaml.
"""

from __future__ import annotations

import dataclasses
import io
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from janus_plugins.core.plan import RunPlan
from janus_plugins.core.runfile import load_run
from janus_plugins.core.wiring import resolve
from janus_plugins.training.plan_recipe import plan_recipe
from janus_plugins.training.precompute import precompute
from janus_plugins.training.run import run_recipe
from janus_plugins.training.world import World, close_world, open_world

from .toys import ToyRecipe, toy_model, toy_run, toy_stage, zero


def quiet() -> Console:
    return Console(file=io.StringIO())


def run_tuned(out: Path, zero_stage: int, world: World) -> None:
    """Train on the same batches whether they come to one rank or to two; nothing is dropped."""
    data = ToyRecipe()
    data.accumulate = 2 // world.size
    lora = {"language_model.block": {"rate": 1e-2, "r": 2}}
    stage = toy_stage(steps=3, lora=lora, learn={"generation.image.head": 1e-2}, ema=0.8)
    recipe = toy_run(stage, data=data, engine=zero(zero_stage))

    def build(_: bool) -> nn.Module:
        model = toy_model()
        next(part for part in model.modules() if isinstance(part, nn.Dropout)).p = 0.0
        return model

    run_recipe(dataclasses.replace(recipe, build=build), out, world, console=quiet())


def adapters_only(run: Path, zero_stage: int, *overrides: str) -> RunPlan:
    options = [f"engine.deepspeed.zero_optimization.stage={zero_stage}", *overrides]
    plan = resolve(load_run(run, options))
    return dataclasses.replace(plan, run=plan.run.model_copy(update={"stages": (plan.run.stages[1],)}))


def run_answered(out: Path, zero_stage: int, run: Path, world: World) -> None:
    answers = out.with_name("answers")
    precompute(adapters_only(run, zero_stage), answers, world)
    chosen = [f"data.{name}.precomputed={answers}" for name in ("read", "draw")]
    recipe = plan_recipe(adapters_only(run, zero_stage, *chosen))
    run_recipe(recipe, out, world, console=quiet())


def main(what: str, out: str, zero_stage: str, *rest: Any) -> None:
    world = open_world()
    if what == "tuned":
        run_tuned(Path(out), int(zero_stage), world)
    else:
        run_answered(Path(out), int(zero_stage), Path(rest[0]), world)
    close_world()


if __name__ == "__main__":
    main(*sys.argv[1:])
