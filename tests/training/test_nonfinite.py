"""A step whose loss or gradient is not finite changes nothing, whatever the ZeRO stage and precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from janus_plugins.core.errors import CheckpointError, NonFiniteError
from janus_plugins.door import plan as read_plan
from janus_plugins.sequence.batch import Batch
from janus_plugins.training.engine import Engine, step_counts
from janus_plugins.training.metrics import read_metrics
from janus_plugins.training.nonfinite import BadSteps
from janus_plugins.training.optim import choose_learning, set_trainable
from janus_plugins.training.plan_recipe import plan_recipe
from janus_plugins.training.run import run_recipe
from janus_plugins.training.weights import full_weights
from janus_plugins.training.world import World

from ..tiny import write_tiny
from .runs import start
from .toys import STEEP, ToyRecipe, toy_batch, toy_model, toy_run, toy_stage, zero

SETTINGS = [(stage, precision) for stage in range(4) for precision in ("fp32", "bf16")]


def spoiled(batch: Batch, value: float) -> Batch:
    batch.understanding["image"].items["pixels"][0] = value
    return batch


def _take_note(model: Any, given: Any, losses: Any) -> None:
    model.steps_seen.lerp_(losses.loss.detach().to(model.steps_seen.dtype), 0.5)


@pytest.mark.parametrize("value", [float("nan"), STEEP * 2], ids=["loss", "gradient"])
@pytest.mark.parametrize(("stage", "precision"), SETTINGS)
def test_a_bad_step_changes_nothing(stage: int, precision: str, value: float, world: World) -> None:
    """Neither parameters nor what moves in the forward pass, as a running mean does."""
    options = toy_run(engine=zero(stage, precision, accumulate=2)).engine
    model, recipe = toy_model(), toy_stage(optimizer={"weight_decay": 0.1})
    model.register_forward_hook(_take_note)
    learning = choose_learning(model, recipe)
    set_trainable(model, learning)
    engine = Engine(model, recipe, options, learning, world)
    good, bad = [toy_batch(1), toy_batch(2)], [spoiled(toy_batch(3), value), toy_batch(4)]
    counts = step_counts(good, None)
    assert engine.step(good, counts, 0).applied
    before = full_weights(engine, world, {})
    assert not engine.step(bad, counts, 1).applied
    after = full_weights(engine, world, {})
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert engine.step(good, counts, 2).applied
    later = full_weights(engine, world, {})
    assert all(torch.isfinite(tensor).all() for tensor in later.values())
    assert not torch.equal(later["language_model.embedding.weight"], after["language_model.embedding.weight"])
    engine.close()


class SpoiledRecipe(ToyRecipe):
    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def batch(self, offset: int, step: int, world: World, number: int) -> Batch:
        batch = super().batch(offset, step, world, number)
        return spoiled(batch, float("nan")) if step in self.steps else batch


def test_bad_steps_are_counted(world: World, tmp_path: Path) -> None:
    result = start(toy_run(data=SpoiledRecipe(1, 3)), tmp_path, world)
    assert result.skipped_steps == 2
    assert [line["applied"] for line in read_metrics(tmp_path)] == [True, False, True, False, True, True]


def test_too_many_bad_steps_in_a_row_stop_with_the_batch(world: World, tmp_path: Path) -> None:
    recipe = toy_run(data=SpoiledRecipe(1, 3, 4), engine={"nonfinite_limit": 2})
    with pytest.raises(
        NonFiniteError, match=r"2 steps in a row, up to step 5.*In the last one the loss was not"
    ):
        start(recipe, tmp_path, world)
    saved = load_file(tmp_path / "nonfinite" / "step_5_rank_0.safetensors")
    assert saved["micro_0.understanding.image.items.pixels"][0].isnan().all()
    assert saved["micro_0.ids"].shape == (1, 12)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (
            "understanding.image.encoder",
            "the features of understanding.image.encoder: understanding_encoder/",
        ),
        (
            "understanding.image.adapter",
            "the embeddings of understanding.image.adapter: adapter/mlp of janus-",
        ),
        (
            "generation.image.adapter",
            "the embeddings of generation.image.adapter: adapter/code-mlp of janus-",
        ),
        ("language_model", "the hidden states of language_model: language_model/llama of janus-plugins"),
        ("generation.image.head", "the losses of generation.image.head: head/code-mlp of janus-plugins"),
    ],
)
def test_who_answered_what_is_not_finite_first_is_said(
    path: str, said: str, world: World, tmp_path: Path, monkeypatch: Any
) -> None:
    plan = read_plan(write_tiny(tmp_path), ["engine.nonfinite_limit=1"])
    whole = Engine.__init__

    def spoil(self: Engine, model: Any, stage: Any, *others: Any) -> None:
        if stage.name == "finetune":
            part = model.get_submodule(path)
            for inner in [part.model.norm] if path == "language_model" else part.modules():
                if not list(inner.children()):
                    inner.register_forward_hook(lambda module, given, made: made * float("nan"))
        whole(self, model, stage, *others)

    monkeypatch.setattr(Engine, "__init__", spoil)
    with pytest.raises(NonFiniteError) as stopped:
        run_recipe(plan_recipe(plan), tmp_path / "run", world)
    assert f"In the last one {said}" in str(stopped.value)
    assert "were not. The last batch is in" in str(stopped.value)


def test_a_batch_that_cannot_be_written_is_named(world: World, tmp_path: Path, no_file_beyond: Any) -> None:
    bad = BadSteps(1, tmp_path / "nonfinite")
    message = r"not finite in 1 steps in a row.* cannot be written to .*step_5_rank_0.*; make room"
    with no_file_beyond(100), pytest.raises(CheckpointError, match=message):
        bad.note(False, 5, 0, [toy_batch(1)])


def test_a_step_without_targets_changes_nothing(world: World, tmp_path: Path) -> None:
    class Empty(ToyRecipe):
        def batch(self, offset: int, step: int, world: World, number: int) -> Any:
            return toy_batch(step, text=False, made=0)

    start(toy_run(toy_stage(optimizer={"weight_decay": 0.5}), data=Empty()), tmp_path, world)
    final = load_file(tmp_path / "checkpoints" / "stage_0" / "model.safetensors")
    for name, value in toy_model().state_dict().items():
        assert torch.equal(final[name], value), name
    assert [line["loss"] for line in read_metrics(tmp_path)] == [{}] * 6
