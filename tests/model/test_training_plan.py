"""What `explain` counts: operations against torch's own counter, memory against autograd, and the plan."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from janus_plugins.core.errors import RunFileError
from janus_plugins.core.runfile import load_run
from janus_plugins.core.wiring import resolve
from janus_plugins.data.loader import StepLoader
from janus_plugins.door import plan as plan_of
from janus_plugins.model.compose import build_tokenizer_for, compose_plan
from janus_plugins.model.explain import PUBLISHED_ONLY, explain, shapes
from janus_plugins.model.flops import SampleFlops, Shape, names_learn, transformer_flops
from janus_plugins.model.memory import saved_bytes
from janus_plugins.model.training_plan import Machines, TrainingPlan, training_plan


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    spec = importlib.util.spec_from_file_location("tiny_run", Path(__file__).parents[1] / "tiny.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return resolve(load_run(module.write_tiny(tmp_path_factory.mktemp("run"))))


@pytest.fixture(scope="module")
def reference() -> Any:
    return explain(plan_of("janus_1.3b"))


@pytest.fixture(scope="module")
def flops() -> SampleFlops:
    plan = plan_of("janus_1.3b")
    return SampleFlops(plan, compose_plan(plan, object(), weights=False, device="meta"))  # type: ignore[arg-type]


def planned(flops: SampleFlops, reference: Any, machines: Machines) -> TrainingPlan:
    learnt = {stage.name: stage.total_trainable for stage in reference.stages}
    return training_plan(plan_of("janus_1.3b"), flops, machines, reference.total, learnt)


def test_totals_of_the_published_files(reference: Any) -> None:
    assert reference.published_total == 2_089_232_011
    (pool,) = reference.published_only
    assert (pool.address, pool.shapes) == ("understanding.image.encoder.attn_pool", PUBLISHED_ONLY)
    assert pool.parameters == 12_595_200


def test_explain_refuses_what_train_refuses_to_learn(tiny: Any) -> None:
    stage = tiny.run.stages[2].model_copy(update={"learn": {"language_model.layrs": 1e-3}})
    run = tiny.run.model_copy(update={"stages": (stage,)})
    with pytest.raises(
        RunFileError, match=r"finetune.learn: 'language_model.layrs' names no parameter.*layers"
    ):
        explain(dataclasses.replace(tiny, run=run))


@pytest.mark.parametrize(
    ("adapter", "expected"),
    [
        ("{use: perceiver, options: {tokens: 8}}", "[8, {}]"),
        ("{use: mlp}", "[T, {}]"),
    ],
)
def test_what_leaves_an_adapter_of_items_of_any_length(tmp_path: Path, adapter: str, expected: str) -> None:
    encoder = "{use: audio, options: {width: 32, depth: 1, num_heads: 2}}"
    sound = f"model.understanding={{audio: {{encoder: {encoder}, adapter: {adapter}}}}}"
    run = plan_of("digits", [sound, "data={}", "stages=[]", "evaluation={}"])
    part = run.model.understanding["audio"].adapter
    assert shapes(run, part) == f"[T, 32] -> {expected.format(run.model.facts.width)}"


def test_a_size_that_nobody_published_has_nothing_beside_it(tiny: Any) -> None:
    told = explain(tiny)
    assert told.published_only == ()
    assert told.published_total == told.total


def test_forward_operations_of_the_reference(flops: SampleFlops) -> None:
    cost = flops.forward(Shape(text=62, learnt_text=62, understanding="image"))
    assert flops.tokens(Shape(62, 62, understanding="image")) == 640
    # 24 layers of 4 M^2 + 3 M F weights; SigLIP-L/16 and VQ-16 at 384 px as their papers' code computes them.
    weights = 24 * (4 * 2048**2 + 3 * 2048 * 5632)
    assert cost["language_model"] == transformer_flops(weights, 2048, 24, 640)
    assert cost["language_model.text_head"] == 2 * 2048 * 102400 * 62
    assert cost["understanding.image.encoder"] == pytest.approx(0.381e12, rel=2e-3)
    drawn = flops.forward(Shape(text=62, learnt_text=0, generation="image"))
    assert drawn["generation.image.encoder"] == pytest.approx(0.3127e12, rel=1e-3)
    assert drawn["generation.image.head"] == 2 * 576 * (2048 * 2048 + 2048 * 16384)
    assert flops.estimated == ()


@pytest.mark.parametrize("stage", [1, 2], ids=["adapters", "finetune"])
def test_training_operations_against_a_real_step(tiny: Any, stage: int) -> None:
    """Counted by torch while the tiny model takes a step on real samples."""
    changes = {"drop_prompt": 0.0, "mix": {"understanding": 1, "generation": 1}, "max_length": 128}
    block = tiny.run.stages[stage].model_copy(update=changes)  # one row, without padding
    tokenizer = build_tokenizer_for(tiny)
    model = compose_plan(tiny, tokenizer)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(names_learn(name, block))
    (batch,) = next(iter(StepLoader(tiny, tokenizer, block))).micro  # type: ignore[arg-type]
    with FlopCounterMode(display=False) as counter:
        model(batch, {"text": 1.0, "generation.image": 1.0}).loss.backward()
    flops = SampleFlops(tiny, compose_plan(tiny, tokenizer, weights=False, device="meta"))
    assert batch.num_tokens == batch.ids.numel()
    number, slots = batch.num_samples["understanding"], flops.tokens(Shape(0, 0, "image"))
    drawn_slots = flops.tokens(Shape(0, 0, generation="image"))
    assert number == batch.num_samples["generation"]
    text = batch.num_tokens / number - slots - drawn_slots  # of a pair of samples
    learnt = round(batch.text_at.numel() / number)
    shown = flops.training(Shape(round(text / 2), learnt, understanding="image"), block)
    drawn = flops.training(Shape(round(text / 2), 0, generation="image"), block)
    assert number * (shown + drawn) == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_bytes_that_autograd_keeps() -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(8, 16, bias=False), torch.nn.Sigmoid())
    data = torch.zeros(4, 8)
    # The layer keeps its input [4, 8] and the sigmoid its output [4, 16]; weights are not counted.
    assert saved_bytes(layer, lambda: layer(data), bf16=False) == 4 * (4 * 8 + 4 * 16)
    assert saved_bytes(layer, lambda: layer(data), bf16=True) == 2 * (4 * 8 + 4 * 16)


def test_the_plan_beside_the_papers_seven_days(reference: Any) -> None:
    plan = reference.plan
    assert [stage.choice.zero for stage in plan.stages] == [2, 2, 2]
    assert [stage.batch for stage in plan.stages] == [256, 512, 256]
    assert plan.days == pytest.approx(0.46, rel=0.1)
    assert plan.days_of_rows == pytest.approx(2.5, rel=0.1)
    assert (plan.published.days, plan.published.gpus) == (7, 128)
    samples, rows = plan.published_mfu
    assert rows == pytest.approx(0.4 * plan.days_of_rows / 7)
    assert samples < rows


def test_more_machines_take_less_time_and_less_memory_each(flops: SampleFlops, reference: Any) -> None:
    few = planned(flops, reference, Machines(gpus=16))
    assert few.days == pytest.approx(8 * reference.plan.days)
    for small, large in zip(few.stages, reference.plan.stages, strict=True):
        assert small.rows_per_gpu > large.rows_per_gpu
        assert small.fits[2].fixed > large.fits[2].fixed
        assert small.fits[0].fixed == large.fits[0].fixed


def test_what_does_not_fit_is_said(flops: SampleFlops, reference: Any) -> None:
    """14 bytes for each of 2.0e9 that learn and 2 for each of all: 30 GiB in ZeRO 0, whatever the machines."""
    small = planned(flops, reference, Machines(gpus=128, memory=4))
    finetune = small.stages[2]
    assert finetune.fits[0].rows == 0
    assert finetune.fits[0].accumulate is None
    assert finetune.choice is finetune.fits[3] or finetune.choice is None
    assert reference.plan.stages[2].fits[0].fixed == pytest.approx(30.0, abs=1.5)


def test_texts_end_where_rows_do(tiny: Any) -> None:
    """Texts are taken to be 1,024 tokens long, but rows of the tiny run hold 64."""
    plan = explain(tiny).plan
    assert plan.stages[2].tokens["text"] == 64
    assert plan.stages[0].tokens == {"reconstruct": 16}
    assert all(stage.days_of_rows >= stage.days for stage in plan.stages)
    assert plan.published_mfu is None
