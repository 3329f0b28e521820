"""The running average of the weights: its arithmetic, its place in checkpoints, what a stage ends with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from janus_plugins.core.schema import StageBlock
from janus_plugins.training.ema import AVERAGE, AveragingAdamW
from janus_plugins.training.world import World

from .runs import Crash, CrashingRecipe, assert_same, losses, start, weights
from .toys import ToyRecipe, some_slow, toy_batch, toy_model, toy_run, toy_stage, zero

DECAY = 0.9
SETTINGS = [zero(0), zero(1), zero(3), zero(0, "bf16"), zero(2, "bf16")]


def stage(name: str = "one", **changes: Any) -> StageBlock:
    return toy_stage(name, **{"steps": 4, "ema": DECAY, **changes})


def averages_by_hand(
    steps: int, engine: dict[str, Any], world: World, tmp_path: Path
) -> dict[str, torch.Tensor]:
    """Run a plain stage once to each step and average its ends."""
    first, ends = dict(toy_model().state_dict()), []
    for step in range(1, steps + 1):
        out = tmp_path / f"until_{step}"
        start(toy_run(toy_stage("one", steps=steps, stop_at=step), engine=engine), out, world)
        ends.append(weights(out, 0))
    for name, value in first.items():
        average = value
        if engine["precision"] == "bf16" and not torch.equal(value, ends[0][name]):  # it learns from there
            average = value.bfloat16().float()
        for end in ends:
            average = torch.lerp(average, end[name], 1 - DECAY)
        first[name] = average
    return first


@pytest.mark.parametrize("engine", some_slow([zero(2), zero(3), zero(0, "bf16")], zero(2)))
def test_a_stage_ends_with_the_average_of_what_it_passed(
    engine: dict[str, Any], world: World, tmp_path: Path
) -> None:
    start(toy_run(stage(steps=3), engine=engine), tmp_path / "out", world)
    found = weights(tmp_path / "out", 0)
    for name, value in averages_by_hand(3, engine, world, tmp_path).items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7)
    assert all(value.dtype == torch.float32 for value in found.values())


@pytest.mark.parametrize("engine", some_slow(SETTINGS, zero(2, "bf16")))
def test_the_average_is_gone_on_with_exactly(engine: dict[str, Any], world: World, tmp_path: Path) -> None:
    stages, engine = (stage("one"), stage("two", ema=0.5)), {**engine, "save_every": 3}
    start(toy_run(*stages, engine=engine), tmp_path / "whole", world)
    with pytest.raises(Crash):
        start(toy_run(*stages, data=CrashingRecipe(7), engine=engine), tmp_path / "broken", world)
    start(toy_run(*stages, engine=engine), tmp_path / "broken", world, resume=True)
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    for index in (0, 1):
        assert_same(weights(tmp_path / "broken", index), weights(tmp_path / "whole", index))


def test_without_export_the_stage_ends_as_ever_and_the_average_lies_beside(
    world: World, tmp_path: Path
) -> None:
    def save(model: Any, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), folder / "model.safetensors")

    start(toy_run(toy_stage(steps=4)), tmp_path / "plain", world)
    start(toy_run(stage()), tmp_path / "averaged", world)
    start(toy_run(stage(ema_export=False), save_native=save), tmp_path / "apart", world)
    assert_same(weights(tmp_path / "apart", 0), weights(tmp_path / "plain", 0))
    assert_same(load_file(tmp_path / "apart" / "model" / "model.safetensors"), weights(tmp_path / "plain", 0))
    assert_same(
        load_file(tmp_path / "apart" / "model-ema" / "model.safetensors"), weights(tmp_path / "averaged", 0)
    )


class OneBadStep(ToyRecipe):
    def batch(self, offset: int, step: int, world: World, number: int) -> Any:
        batch = toy_batch(offset + step)
        if step == 1:
            batch.understanding["image"].items["pixels"].fill_(float("nan"))
        return batch


def test_a_refused_step_leaves_the_average_alone(world: World, tmp_path: Path) -> None:
    for number in (0, 2):
        out = tmp_path / str(number)
        start(toy_run(stage(steps=2), data=OneBadStep(), engine=zero(number)), out, world)
    start(toy_run(stage(steps=2, stop_at=1)), tmp_path / "one", world)
    for number in (0, 2):
        for name, value in weights(tmp_path / "one", 0).items():
            torch.testing.assert_close(weights(tmp_path / str(number), 0)[name], value, rtol=1e-6, atol=1e-7)


def test_a_parameter_without_a_gradient_gets_no_state() -> None:
    learnt, idle = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = AveragingAdamW([{"params": [learnt, idle], "lr": 0.5}], DECAY)
    learnt.grad = torch.ones(2)
    optimizer.step()
    assert idle not in optimizer.state
    torch.testing.assert_close(optimizer.state[learnt][AVERAGE], 0.9 * torch.ones(2) + 0.1 * learnt.detach())
    with pytest.raises(ValueError, match="under 'ema' too"):
        toy_stage(ema_export=True)
