"""Training on a device that is not the CPU: DeepSpeed's own engine on the stand-in of `testing.elsewhere`.

The same losses as on the CPU, whole runs with their checkpoints, and no wait for the device between the
first layer and the last gradient.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.accelerator import real_accelerator
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

from janus_plugins.core.plan import RunPlan
from janus_plugins.door import load, plan as read_plan
from janus_plugins.testing.elsewhere import AWAY, elsewhere
from janus_plugins.training.metrics import read_metrics
from janus_plugins.training.plan_recipe import plan_recipe
from janus_plugins.training.run import TrainResult, run_recipe
from janus_plugins.training.world import World
from tests.tiny import write_tiny


class Accelerator(CPU_Accelerator):
    """DeepSpeed's CPU, whose tensors are on the stand-in."""

    def device_name(self, device_index: int | None = None) -> str:
        return AWAY.type if device_index is None else f"{AWAY.type}:{device_index}"

    def device(self, device_index: int | None = None) -> torch.device:
        return AWAY

    def current_device(self) -> int:
        return 0

    def current_device_name(self) -> str:
        return str(AWAY)

    def on_accelerator(self, tensor: torch.Tensor) -> bool:
        return tensor.device.type == AWAY.type


@pytest.fixture
def away(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(real_accelerator, "ds_accelerator", Accelerator())
    return World(world.rank, world.size, AWAY)


def trained(plan: RunPlan, out: Path, world: World, **options: Any) -> TrainResult:
    if world.device.type == "cpu":
        return run_recipe(plan_recipe(plan), out, world, **options)
    with elsewhere():
        return run_recipe(plan_recipe(plan), out, world, **options)


def losses(out: Path) -> list[float]:
    return [value for line in read_metrics(out) for value in (*line["loss"].values(), line["grad_norm"])]


SETTINGS = {
    "fp32": ["engine.precision=fp32"],
    "bf16": ["engine.precision=bf16", "engine.deepspeed.zero_optimization.stage=0"],
    "zero-2, bf16": ["engine.precision=bf16", "engine.deepspeed.zero_optimization.stage=2"],
    "zero-1": ["engine.precision=fp32", "engine.deepspeed.zero_optimization.stage=1"],
    "zero-2, accumulated": [
        "engine.precision=fp32",
        "engine.accumulate=2",
        "engine.deepspeed.zero_optimization.stage=2",
        "engine.checkpointing=true",
    ],
    "averaged": ["stages.finetune.ema=0.9"],
    "lora": [
        "stages.finetune.learn={understanding.image.adapter: 1.0e-3}",
        "stages.finetune.lora={language_model: {r: 4, rate: 1.0e-3}}",
    ],
}


QUICK = "zero-2, accumulated"


@pytest.mark.parametrize(
    "name", [name if name == QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SETTINGS]
)
def test_a_run_is_the_cpus(name: str, world: World, away: World, tmp_path: Path) -> None:
    plan = read_plan(write_tiny(tmp_path), SETTINGS[name])
    result = trained(plan, tmp_path / "away", away)
    assert result.skipped_steps == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(real_accelerator, "ds_accelerator", CPU_Accelerator())
        trained(plan, tmp_path / "here", world)
    half = "bf16" in name
    assert losses(tmp_path / "away") == pytest.approx(
        losses(tmp_path / "here"), rel=0.05 if half else 1e-4, abs=1e-4
    )
    models = [load(tmp_path / out / "model").state_dict() for out in ("away", "here")]
    for key, value in models[1].items():
        torch.testing.assert_close(models[0][key], value, rtol=1e-2, atol=4e-3 if half else 1e-4, msg=key)


@pytest.mark.parametrize("checkpointing", ["false", "true", "selective"])
def test_nothing_waits_between_the_first_layer_and_the_last_gradient(
    checkpointing: str, tmp_path: Path
) -> None:
    plan = read_plan(write_tiny(tmp_path), [f"engine.checkpointing={checkpointing}"])
    recipe = plan_recipe(plan)
    model = recipe.build(True).train()
    with elsewhere() as mode:
        model.to(AWAY)
        mode.waits.clear()
        for stage in plan.run.stages:
            batch = next(iter(recipe.loader(stage, World(0, 1, AWAY), None))).micro[0]
            scale = dict.fromkeys(batch.targets(stage.reconstruct), 1.0)
            losses = model(batch.to(AWAY), scale, stage.reconstruct)
            losses.loss.backward()
            assert not mode.waits, stage.name
        assert float(losses.loss.detach()) > 0
        assert mode.waits
