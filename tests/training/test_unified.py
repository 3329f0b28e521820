"""The real model, loader and native folder through `train`: the tiny run file."""

from __future__ import annotations

import dataclasses
import io
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from janus_plugins.core.plan import RunPlan
from janus_plugins.core.runfile import load_run
from janus_plugins.core.schema import Lora
from janus_plugins.core.wiring import resolve
from janus_plugins.model.native import load_native
from janus_plugins.training.plan_recipe import plan_recipe
from janus_plugins.training.recipe import Recipe
from janus_plugins.training.run import run_recipe, train
from janus_plugins.training.world import World

from .runs import Crash, assert_same, losses, weights


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> RunPlan:
    spec = spec_from_file_location("tiny_run_file", Path(__file__).parents[1] / "tiny.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return resolve(load_run(module.write_tiny(tmp_path_factory.mktemp("tiny"))))


def quiet() -> Console:
    return Console(file=io.StringIO())


def crashing(recipe: Recipe, after: int) -> Recipe:
    """Return the same recipe, its data breaking off after some steps altogether."""
    left = iter(range(after))

    def loader(*place: Any) -> Any:
        for batch in recipe.loader(*place):
            if next(left, None) is None:
                raise Crash
            yield batch

    return dataclasses.replace(recipe, loader=loader)


def test_the_recipe_of_a_run_file_trains_resumes_and_saves(
    plan: RunPlan, world: World, tmp_path: Path
) -> None:
    result = train(plan, tmp_path / "whole", console=quiet())
    assert (result.steps, result.is_main, result.model) == (6, True, tmp_path / "whole" / "model")
    assert list(result.seconds) == ["tokenizer", "adapters", "finetune"]
    with pytest.raises(Crash):
        run_recipe(crashing(plan_recipe(plan), 5), tmp_path / "broken", world, console=quiet())
    assert train(plan, tmp_path / "broken", resume=True, console=quiet()).steps == 6
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    for stage in range(3):
        assert_same(weights(tmp_path / "broken", stage), weights(tmp_path / "whole", stage))
    saved = load_native(tmp_path / "broken" / "model").state_dict()
    for name, value in weights(tmp_path / "whole", 2).items():
        assert torch.equal(saved[name], value), name


def test_a_lora_stage_of_the_real_model_ends_as_plain_weights(plan: RunPlan, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    updates = Lora(rate=1e-2, r=2, targets=("q_proj", "v_proj"))
    changes = {
        "lora": {"language_model": updates},
        "learn": {"understanding.image.adapter": 1e-3},
        "ema": 0.5,
    }
    adapting = dataclasses.replace(
        plan, run=plan.run.model_copy(update={"stages": (plan.run.stages[2].model_copy(update=changes),)})
    )
    train(adapting, tmp_path, console=quiet())
    first, last = plan_recipe(plan).build(True).state_dict(), load_native(tmp_path / "model").state_dict()
    assert first.keys() == last.keys()
    moved = {name for name in first if not torch.equal(first[name], last[name])}
    heads = {f"language_model.model.layers.{n}.self_attn.{p}_proj.weight" for n in (0, 1) for p in "qv"}
    assert {name for name in moved if not name.startswith("understanding.image.adapter.")} == heads


def test_after_a_reconstruction_the_code_table_is_the_trained_codebook(plan: RunPlan, tmp_path: Path) -> None:
    train(plan, tmp_path, only_stage="tokenizer", console=quiet())
    model = load_native(tmp_path / "model")
    path: Any = model.generation["image"]
    table = next(p for name, p in path.adapter.named_parameters() if p.shape == path.encoder.codebook().shape)
    assert torch.equal(table, path.encoder.codebook())
    first = plan_recipe(plan).build(True)
    assert not torch.equal(
        first.get_submodule("generation.image.encoder").codebook(), path.encoder.codebook()
    )
