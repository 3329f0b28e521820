"""LoRA, the running average and precomputed answers on two ranks: the same as on one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from janus_plugins.training.metrics import read_metrics
from janus_plugins.training.plan_recipe import plan_recipe
from janus_plugins.training.run import run_recipe
from janus_plugins.training.world import World

from ..tiny import write_tiny
from .runs import weights
from .test_ranks import launch
from .toys import toy_model
from .tuned import adapters_only, quiet, run_tuned

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_two_ranks_tune_and_average_as_one(zero_stage: int, world: World, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    launch(2, "tuned", str(tmp_path / "two"), str(zero_stage), module="tuned")
    run_tuned(tmp_path / "one", zero_stage, world)
    two, one = weights(tmp_path / "two", 0), weights(tmp_path / "one", 0)
    assert two.keys() == one.keys() == toy_model().state_dict().keys()
    moved = {name for name, value in toy_model().state_dict().items() if not torch.equal(value, one[name])}
    assert "language_model.block.0.weight" in moved
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("zero_stage", [3])
def test_two_ranks_with_answers_take_the_steps_of_one_without(
    zero_stage: int, world: World, tmp_path: Path
) -> None:
    run = write_tiny(tmp_path)
    launch(2, "answered", str(tmp_path / "two"), str(zero_stage), str(run), module="tuned")
    run_recipe(plan_recipe(adapters_only(run, zero_stage)), tmp_path / "one", world, console=quiet())
    two, one = read_metrics(tmp_path / "two"), read_metrics(tmp_path / "one")
    assert len(two) == len(one) == 2
    for theirs, ours in zip(two, one, strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5)
        assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=1e-4)
