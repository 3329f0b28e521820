"""The ablations of the paper's table 5 and the semantic tokenizer: what they hold, and that they run."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from janus_plugins.data.loader import StepLoader
from janus_plugins.door import plan as read_plan
from janus_plugins.model.compose import compose_plan
from janus_plugins.model.explain import explain
from janus_plugins.model.native import load_native
from janus_plugins.training.metrics import read_metrics
from janus_plugins.training.run import train
from tests.tiny import write_tiny

LANGUAGE = {"language_model": 1_652_656_128}
SEEN = {"understanding.image.encoder": 303_688_704, "understanding.image.adapter": 6_295_552}
DRAWN = {"generation.image.adapter": 4_214_784 + 131_072, "generation.image.head": 37_767_168}
VQ = {"generation.image.encoder": 71_883_403}
CODES_IN = {"understanding.image.adapter": 8 * 2048 + 2048 + 2048 * 2048 + 2048}
MEANING_IN = {"understanding.image.adapter": 768 * 2048 + 2048 + 2048 * 2048 + 2048}
SEMANTIC = 85_505_280
"""Twelve blocks of width 768 over 576 places, from codes of width 8."""
PIXELS_OUT = 42_449_795 + 2_304

PARTS = {
    "exp_a": {**LANGUAGE, **CODES_IN, **VQ, **DRAWN},
    "exp_b": {**LANGUAGE, **MEANING_IN, **DRAWN, "generation.image.encoder": 71_883_403 + SEMANTIC},
    "exp_c": {
        **LANGUAGE,
        **MEANING_IN,
        "understanding.image.encoder": 71_883_403 + SEMANTIC - PIXELS_OUT,
    },
    "exp_d": {**LANGUAGE, **SEEN, **VQ, **DRAWN},
    "exp_e": {**LANGUAGE, **SEEN},
    "exp_f": {**LANGUAGE, **VQ, **DRAWN},
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_and_what_each_stage_trains(name):
    explained = explain(read_plan(f"ablations/{name}"))
    counts = {part.address: part.parameters for part in explained.parts}
    assert counts == PARTS[name]
    learnt = {stage.name: stage.trainable for stage in explained.stages}
    rest = {address: count for address, count in counts.items() if address != "generation.image.encoder"}
    assert learnt["finetune"] == rest
    assert learnt["unified"] == {
        address: count for address, count in rest.items() if address != "understanding.image.encoder"
    }
    table = {"generation.image.adapter": 131_072}  # frozen in stage I
    assert learnt["adapters"] == {
        address: count - table.get(address, 0)
        for address, count in rest.items()
        if address not in ("language_model", "understanding.image.encoder")
    }


@pytest.mark.parametrize("name", PARTS)
def test_every_path_sees_as_many_samples_as_in_the_unified_training(name):
    whole = read_plan("janus_1.3b").run.stages
    for stage, reference in zip(read_plan(f"ablations/{name}").run.stages, whole, strict=True):
        assert (stage.steps, stage.schedule) == (reference.steps, reference.schedule)
        for task, ratio in stage.mix.items():
            share = reference.batch * reference.mix[task] / sum(reference.mix.values())
            mine = stage.batch * ratio / sum(stage.mix.values())
            assert ratio in (0, reference.mix[task])
            assert ratio == 0 or mine == pytest.approx(share, abs=0.5)


def test_the_semantic_tokenizers_recipe():
    plan = read_plan("semantic_tokenizer")
    explained = explain(plan)
    count = {part.address: part.parameters for part in explained.parts}["generation.image.encoder"]
    assert count == 71_883_403 + SEMANTIC + (768 * 1024 + 1024) + 2_765_633  # to the teacher; PatchGAN
    images = (40 * 1_281_167, 50_000_000)
    for stage, number in zip(plan.run.stages, images, strict=True):
        assert 0 <= stage.steps * stage.batch - number < stage.batch
        assert (stage.batch, stage.schedule.type, stage.schedule.warmup) == (128, "constant", 0)
        assert stage.learn == {"generation.image.encoder": 1e-4}
    assert [stage.trainable for stage in explained.stages] == [{"generation.image.encoder": count}] * 2
    assert set(plan.run.stages[0].sources) == {"imagenet"}
    assert all(name.startswith("draw_") for name in plan.run.stages[1].sources)
    options = plan.model.generation["image"].encoder.config
    weights = options.loss.model_dump()
    terms = ("l2", "semantic", "adversarial", "codebook", "commitment")
    assert [weights[name] for name in terms] == [1.0, 0.25, 0.5, 1.0, 0.25]
    assert options.discriminator.start == 20_000


SEMANTIC_OPTIONS = (
    "{image_size: 8, channels: 8, multipliers: [1, 2], num_res_blocks: 1, z_channels: 8, codebook_size: 16, "
    "code_width: 4, norm_groups: 4, semantic: {width: 16, depth: 1, num_heads: 2}, "
    "teacher: {patch_size: 4, embed_dim: 16, depth: 1, num_heads: 2, weights: null}, "
    "discriminator: {channels: 4, layers: 1, start: 1}}"
)
SHARE = "model.understanding.image.encoder.share=generation.image.encoder"
GENERATION_OFF = [
    "model.generation=null",
    "stages=[{name: all, learn: {language_model: 4e-3, understanding: 4e-3}, mix: {understanding: 1, text: 1}, "
    "steps: 1, batch: 4, max_length: 64}]",
    "evaluation=null",
]
TINY = {
    "a": [SHARE],
    "b": [SHARE, f"model.generation.image.encoder={{use: semantic-vq, options: {SEMANTIC_OPTIONS}}}"],
    "c": [
        *GENERATION_OFF,
        f"model.understanding.image.encoder={{use: semantic-vq, options: {SEMANTIC_OPTIONS}}}",
    ],
    "e": GENERATION_OFF,
    "f": [
        "model.understanding=null",
        "stages=[{name: all, learn: {language_model: 4e-3, generation.image.head: 4e-3}, "
        "mix: {generation: 1, text: 1}, steps: 1, batch: 4, max_length: 64}]",
        "evaluation=null",
    ],
}


def learn(plan, steps=10):
    """Train a fresh model on the first batch of the last stage; return it and its losses."""
    model, stage = compose_plan(plan).train(), plan.run.stages[-1]
    for part, value in model.named_parameters():
        value.requires_grad_(part.startswith(tuple(f"{prefix}." for prefix in stage.learn)))
    batch = next(iter(StepLoader(plan, model.tokenizer, stage))).micro[0]
    scale = {path: 1 / max(count, 1) for path, count in batch.targets().items()}
    optimizer = torch.optim.Adam([value for value in model.parameters() if value.requires_grad], lr=4e-3)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(batch, scale).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return model, losses


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_one_learns_and_is_used(name, tmp_path):
    plan = read_plan(write_tiny(tmp_path), TINY[name])
    model, losses = learn(plan)
    assert losses[-1] < 0.9 * losses[0]
    model.eval()
    if plan.model.generation:
        assert model.generate("a seven", return_codes=True).shape == (1, 16)
    if plan.model.understanding:
        picture = torch.zeros(9, 12, 3, dtype=torch.uint8).numpy()
        assert isinstance(model.ask("which digit is this?", images=picture, max_new_tokens=2), str)


def test_a_shared_tokenizers_semantics_may_learn_without_its_codes(tmp_path):
    rates = "stages.finetune.learn={language_model: 4e-3, generation.image.encoder.semantic: 4e-3}"
    plan = read_plan(write_tiny(tmp_path), [*TINY["b"], rates])
    before, (after, _) = compose_plan(plan), learn(plan)
    items = {"pixels": torch.rand(4, 3, 8, 8) * 2 - 1}
    old, new = (model.generation["image"].encoder for model in (before, after))
    with torch.no_grad():
        assert torch.equal(old.encode(items), new.encode(items))
        assert not torch.allclose(old.features(items), new.features(items), atol=1e-3)


def test_a_shared_semantic_tokenizer_through_every_stage(tmp_path):
    """Ablation B in small: its tokenizer learns by its own loss, then the model around it, frozen."""
    steps = ["stages.tokenizer.steps=6", "stages.tokenizer.learn={generation.image.encoder: 3e-3}"]
    out = tmp_path / "out"
    train(
        read_plan(write_tiny(tmp_path), [*TINY["b"], *steps, "engine.log_every=1"]),
        out,
        console=Console(file=io.StringIO()),
    )
    told = [
        line["loss"]["reconstruct.semantic"] for line in read_metrics(out) if line["stage"] == "tokenizer"
    ]
    assert len(told) == 6
    assert told[-1] < told[0]
    model = load_native(out / "model")
    encoder = model.generation["image"].encoder
    assert int(encoder.discriminator.steps) == 6
    trained = load_file(out / "checkpoints" / "stage_0" / "model.safetensors")
    for name, value in encoder.state_dict(prefix="generation.image.encoder.").items():
        assert torch.equal(value, trained[name]), name
    assert model.generate("a seven", return_codes=True).shape == (1, 16)
