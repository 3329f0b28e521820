"""A small model learns, through the ordinary data path, when to make an item and what stands in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from janus_plugins.core.samples import Item, Sample
from janus_plugins.data.prepare import Preparer
from janus_plugins.data.sources import open_source
from janus_plugins.door import plan as read_plan
from janus_plugins.model.compose import build_tokenizer_for, compose_plan
from janus_plugins.sequence.assemble import assemble
from tests.tiny import write_tiny

pytest.importorskip("sklearn")
pytestmark = pytest.mark.slow

MORE = """
base: tiny.yaml
model:
  language_model: {options: {hidden_size: 64, intermediate_size: 128, num_heads: 4}}
data:
  count: {use: counting, task: interleaved, options: {ask: words, size: 8, most: 2}}
  count_on: {use: counting, task: interleaved, options: {ask: picture, size: 8, most: 2}}
  next: {use: counting, task: generation, options: {ask: next, size: 8}}
stages:
  finetune: {close_generated: true, learn_begin: true, drop_prompt: 0.15, max_length: 128}
"""
STEPS = 180


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[Sample]]:
    """Train on seven samples until the model knows them; the prompts of items alone differ in their pictures."""
    folder = tmp_path_factory.mktemp("learnt")
    write_tiny(folder)
    (folder / "more.yaml").write_text(MORE)
    plan = read_plan(folder / "more.yaml")
    tokenizer = build_tokenizer_for(plan)
    model, stage = compose_plan(plan, tokenizer), plan.run.stages[-1]
    preparer = Preparer(plan, tokenizer, stage)
    chosen = [
        ("count", 0),
        ("count", 5),
        ("count", 9),
        ("count_on", 1),
        ("count_on", 6),
        ("next", 3),
        ("next", 8),
    ]
    samples = [(name, open_source(plan.data[name].part)[index]) for name, index in chosen]
    rng = np.random.default_rng(0)
    for parameter in model.generation["image"].encoder.parameters():
        parameter.requires_grad = False
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=3e-3)
    for _ in range(STEPS):
        rows = [[preparer.prepare(sample, plan.data[name], rng)] for name, sample in samples]
        batch = assemble(rows, preparer.dummies, preparer.pad)
        losses = model(batch, {path: 1 / number for path, number in batch.targets().items() if number})
        optimizer.zero_grad()
        losses.loss.backward()
        optimizer.step()
    return model, [sample for _, sample in samples]


def asked(sample: Sample) -> tuple[str, list[object]]:
    parts = sample.turns[0].parts
    shown = [part.value for part in parts if isinstance(part, Item)]
    return "".join(part for part in parts if isinstance(part, str)), shown


def codes_of(model: Any, sample: Sample) -> list[list[int]]:
    items = [part.value for part in sample.turns[1].parts if isinstance(part, Item)]
    return model.encode("image", items).tolist()


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_it_writes_the_text_makes_the_items_and_ends(
    learnt: tuple[Any, list[Sample]], guidance: float
) -> None:
    model, samples = learnt
    samples = [sample for sample in samples if sample.task == "interleaved"]
    prompts, images = zip(*map(asked, samples), strict=True)
    answers = model.generate(
        prompts, interleaved=True, images=list(images), guidance=guidance, temperature=0, max_new_tokens=20
    )
    wrong = total = 0
    for answer, sample in zip(answers, samples, strict=True):
        shape = [part if isinstance(part, str) else part.modality for part in answer.parts]
        assert shape == [part if isinstance(part, str) else part.modality for part in sample.turns[1].parts]
        made = torch.stack([item.codes for item in answer.items])
        wrong += int((made != torch.tensor(codes_of(model, sample))).sum())
        total += made.numel()
    assert wrong <= 0.05 * total


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_picture_decides_which_picture_is_made(learnt: tuple[Any, list[Sample]], guidance: float) -> None:
    model, samples = learnt
    samples = [sample for sample in samples if sample.task == "generation"]
    prompts, images = zip(*map(asked, samples), strict=True)
    assert len(set(prompts)) == 1
    made = model.generate(prompts, images=list(images), guidance=guidance, temperature=0, return_codes=True)
    wanted = torch.tensor([codes for sample in samples for codes in codes_of(model, sample)])
    assert (made != wanted).float().mean() <= 0.05
    assert (made[0] != made[1]).any()
