"""The seeded losses of digits.yaml: a change that moves them changes the model, the data or the seed."""

from __future__ import annotations

import pytest

from janus_plugins.data.loader import StepLoader
from janus_plugins.door import plan as read_plan
from janus_plugins.model.compose import build_tokenizer_for, compose_plan

GOLDEN = {
    "tokenizer": {"reconstruct.loss": 0.7348, "reconstruct.reconstruction": 0.7049},
    "adapters": {"text.understanding": 4.5016, "generation.image": 4.8807},
    "finetune": {"text.text": 4.6171, "text.understanding": 4.4884, "generation.image": 4.8854},
}


@pytest.fixture(scope="module")
def composed():
    plan = read_plan("digits")
    tokenizer = build_tokenizer_for(plan)
    return plan, tokenizer, compose_plan(plan, tokenizer).eval()


@pytest.mark.parametrize("name", GOLDEN)
def test_the_first_losses_are_the_known_ones(composed, name):
    plan, tokenizer, model = composed
    stage = next(stage for stage in plan.run.stages if stage.name == name)
    batch = next(iter(StepLoader(plan, tokenizer, stage))).micro[0]
    scale = dict.fromkeys(batch.targets(stage.reconstruct), 1.0)
    losses = model(batch, scale, stage.reconstruct)
    means = {
        label: float(value / losses.counts[label])
        for label, value in losses.sums.items()
        if losses.counts[label]
    }
    means = {label: means[label] for label in GOLDEN[name]}
    assert means == pytest.approx(GOLDEN[name], abs=2e-3)
