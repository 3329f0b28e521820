"""LoRA in a stage: what it learns, what it leaves, and resuming inside it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from janus_plugins.core.errors import PluginError, RunFileError
from janus_plugins.core.schema import Lora, StageBlock
from janus_plugins.model.explain import trainable
from janus_plugins.model.lora import lora_counts, lora_layers
from janus_plugins.training.lora import add_updates, merge_updates
from janus_plugins.training.optim import choose_learning
from janus_plugins.training.world import World

from .runs import Crash, CrashingRecipe, assert_same, losses, start, weights
from .toys import some_slow, toy_batch, toy_model, toy_run, toy_stage, zero

pytest.importorskip("peft")

BLOCK = "language_model.block"
LORA = {BLOCK: {"rate": 1e-2, "r": 2, "alpha": 6.0, "dropout": 0.2}}


def stage(name: str = "one", **changes: Any) -> StageBlock:
    return toy_stage(name, **{"lora": LORA, "learn": {"generation.image.head": 1e-2}, "steps": 4, **changes})


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_updates_begin_as_nothing_and_merge_to_what_they_compute() -> None:
    model, block, batch = toy_model().eval(), stage(), toy_batch(1)
    scale = {"text": 1.0, "generation.image": 1.0}
    plain = model(batch, scale).loss
    updates, learning = add_updates(model, block, choose_learning(model, block), 7)
    model.eval()  # the new dropouts too
    assert torch.equal(model(batch, scale).loss, plain)
    halves = {name: rate for name, rate in learning.rates.items() if ".lora_" in name}
    assert set(halves.values()) == {1e-2}
    assert len(halves) == 4
    assert learning.by_pattern["language_model.block (LoRA)"] == sum(lora_counts(toy_model(), block).values())
    with torch.no_grad():
        for name in halves:
            model.get_parameter(name).normal_()
    merged = toy_model().eval()
    merged.load_state_dict(merge_updates(dict(model.state_dict()), updates))
    assert model(batch, scale).loss.item() != pytest.approx(plain.item(), rel=1e-3)
    torch.testing.assert_close(merged(batch, scale).loss, model(batch, scale).loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "engine", some_slow([zero(0), zero(3), zero(0, "bf16"), zero(2, "bf16")], zero(2, "bf16"))
)
def test_a_lora_stage_leaves_plain_weights_and_resumes_exactly(
    engine: dict[str, Any], world: World, tmp_path: Path
) -> None:
    engine = {**engine, "save_every": 2}
    stages = (stage("one"), toy_stage("two", steps=2))
    start(toy_run(*stages, engine=engine), tmp_path / "whole", world)
    first = dict(toy_model().state_dict())
    learnt = {
        f"{BLOCK}.0.weight",
        f"{BLOCK}.3.weight",
        *(f"generation.image.head.{n}" for n in ("weight", "bias")),
    }
    assert changed(first, weights(tmp_path / "whole", 0)) == learnt
    with pytest.raises(Crash):
        start(toy_run(*stages, data=CrashingRecipe(3), engine=engine), tmp_path / "broken", world)
    start(toy_run(*stages, engine=engine), tmp_path / "broken", world, resume=True)
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    for index in (0, 1):
        assert_same(weights(tmp_path / "broken", index), weights(tmp_path / "whole", index))


def test_an_update_has_the_rank_it_was_given(world: World, tmp_path: Path) -> None:
    start(toy_run(stage(lora={BLOCK: {"rate": 1e-2, "r": 2}})), tmp_path, world)
    name = f"{BLOCK}.0.weight"
    delta = weights(tmp_path, 0)[name] - toy_model().state_dict()[name]
    values = torch.linalg.svdvals(delta)
    assert values[1] > 1e-6
    assert values[2] < 1e-6


def test_zero_stages_agree(world: World, tmp_path: Path) -> None:
    for number in (0, 3):
        start(toy_run(stage(), engine=zero(number)), tmp_path / str(number), world)
    found, other = weights(tmp_path / "0", 0), weights(tmp_path / "3", 0)
    for name, value in found.items():
        torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-6)


def test_the_longest_pattern_chooses_and_targets_are_whole_names() -> None:
    chosen = lora_layers(
        toy_model(),
        stage(
            lora={
                "language_model": {"rate": 1e-3, "targets": ["0", "text_head"]},
                f"{BLOCK}.0": {"rate": 1e-2},
            }
        ),
    )
    assert chosen == {f"{BLOCK}.0": f"{BLOCK}.0", "language_model.text_head": "language_model"}
    assert Lora(rate=1.0, r=4).scale == 2.0


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"language_model.blok": {}}, "no such module. Did you mean 'language_model.block'"),
        ({"language_model.norm": {}}, "no plain linear layer"),
        (
            {"language_model": {"targets": ["head"]}},
            r"no linear layer ends in 'head'; there are .*'text_head'",
        ),
        ({"generation.image": {}}, r"generation.image.head would learn in full .* and by LoRA"),
    ],
)
def test_what_cannot_be_adapted_is_refused_by_name(lora: dict[str, Any], message: str) -> None:
    blocks = {name: {"rate": 1e-3, **block} for name, block in lora.items()}
    with pytest.raises(RunFileError, match=message):
        lora_layers(toy_model(), stage(lora=blocks))


def test_without_peft_the_next_step_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    model = toy_model()
    with pytest.raises(PluginError, match=r"pip install 'janus-plugins\[lora\]'"):
        add_updates(model, stage(), choose_learning(model, stage()), 1)


def test_a_stage_needs_something_to_learn() -> None:
    with pytest.raises(ValueError, match="under 'learn' or 'lora'"):
        stage(learn={}, lora=None)
    assert stage(learn={}).lora is not None


def test_explain_counts_updates_by_part() -> None:
    class Plan:
        class model:
            @staticmethod
            def addresses() -> tuple[str, ...]:
                return "language_model", "generation.image.head"

    counts = trainable(toy_model(), stage(), Plan)  # type: ignore[arg-type]
    assert counts == {"generation.image.head": 7 * 9, "language_model": 2 * 2 * (8 + 16)}
