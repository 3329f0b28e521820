"""Start toy runs and read what they left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from janus_plugins.training.metrics import read_metrics
from janus_plugins.training.recipe import Recipe
from janus_plugins.training.run import TrainResult, run_recipe
from janus_plugins.training.world import World

from .toys import ToyRecipe, ToyStepBatch


class Crash(Exception):
    """Stand for anything that ends a process without warning."""


class CrashingRecipe(ToyRecipe):
    """Crash when the batch of a given step of a given stage (by batch offset) is asked for."""

    def __init__(self, after: int) -> None:
        self.left = after

    def batch(self, *place: Any) -> Any:
        if self.left == 0:
            raise Crash
        self.left -= 1
        return super().batch(*place)


def start(recipe: Recipe, out: Path, world: World, **options: Any) -> TrainResult:
    return run_recipe(recipe, out, world, **options)


def weights(out: Path, stage: int) -> dict[str, Tensor]:
    return load_file(out / "checkpoints" / f"stage_{stage}" / "model.safetensors")


def losses(out: Path) -> list[tuple[int, Any, Any]]:
    return [(line["step"], line["loss"], line["grad_norm"]) for line in read_metrics(out)]


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


__all__ = ["Crash", "CrashingRecipe", "ToyStepBatch", "assert_same", "losses", "start", "weights"]
