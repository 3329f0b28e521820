"""Several codes a slot in every room: wiring, training, precomputing, explaining, generating, coding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from janus_plugins.core.errors import RunFileError, WiringError
from janus_plugins.core.facts import GenerationFacts
from janus_plugins.core.plan import RunPlan
from janus_plugins.data.loader import StepLoader
from janus_plugins.door import plan as read_plan
from janus_plugins.encoders.codecs.encodec_spec import EncodecConfig
from janus_plugins.inference.codes import CodeEmbedder
from janus_plugins.inference.prompts import item_prompt
from janus_plugins.model.compose import build_tokenizer_for, compose_plan
from janus_plugins.model.explain import explain
from janus_plugins.model.flops import SampleFlops, Shape
from janus_plugins.sequence.assemble import PRECOMPUTED
from janus_plugins.sequence.packing import packed_plan
from janus_plugins.training.precompute import precompute
from janus_plugins.training.world import World

Q, K, FRAMES = 3, 8, 10

RUN = """
name: sounds
seed: 1
model:
  language_model:
    use: llama
    options: {vocab_size: 48, hidden_size: 32, intermediate_size: 64, num_layers: 2, num_heads: 2, max_positions: 64}
    tokenizer: {type: trained, level: word, vocab_size: 48}
    template: plain
  generation:
    audio:
      encoder:
        use: rvq
        options: {seconds: 0.02, rate: 8000, num_codebooks: 3, codebook_size: 8, stride: 16, width: 8,
                  loss: {windows: [16]}}
      adapter: {use: code-sum}
      head: {use: depth, options: {width: 16, layers: 1, num_heads: 2}}
data:
  play: {use: tones, task: generation, options: {size: 40, seconds: 0.02}}
  play_test: {use: tones, task: generation, split: test, options: {size: 4, seconds: 0.02, split: test}}
stages:
  - name: codec
    reconstruct: audio
    learn: {generation.audio.encoder: 1.0e-3}
    steps: 2
    batch: 4
    max_length: 64
  - name: unified
    learn: {language_model: 1.0e-3, generation.audio.adapter: 1.0e-3, generation.audio.head: 1.0e-3}
    mix: {generation: 1}
    steps: 2
    batch: 4
    max_length: 64
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sounds") / "sounds.yaml"
    path.write_text(RUN)
    return path


@pytest.fixture(scope="module")
def plan(file: Path) -> RunPlan:
    return read_plan(file)


@pytest.fixture(scope="module")
def model(plan: RunPlan) -> Any:
    """A composed model whose codebooks have learnt from some frames, and whose codes therefore differ."""
    made = compose_plan(plan)
    encoder: Any = made.generation["audio"].encoder
    draw = torch.Generator().manual_seed(0)
    encoder.train().reconstruction_loss({"samples": 0.5 * torch.randn(20, 1, 160, generator=draw)})
    made.init_tables()
    return made.eval()


def batch_of(plan: RunPlan, stage: int = 1) -> Any:
    return next(iter(StepLoader(plan, build_tokenizer_for(plan), plan.run.stages[stage]))).micro[0]  # type: ignore[arg-type]


ENCODEC = {**EncodecConfig.tiny(), "ratios": [2, 2]}
REFUSED = {
    "an adapter of one codebook": (
        ["model.generation.audio.adapter={use: code-mlp}"],
        ["generation.audio.adapter (code-mlp): codes of one slot is 1", "generation.audio.encoder (rvq)", "is 3",
         "choose one that knows several, such as code-sum"],
    ),
    "a head of one codebook": (
        ["model.generation.audio.head={use: code-mlp}"],
        ["generation.audio.head (code-mlp): codes of one slot is 1", "generation.audio.encoder (rvq)", "is 3",
         "choose one that knows several, such as depth"],
    ),
    "an encoder with a line of codes": (
        [f"model.generation.audio.encoder={{use: encodec, options: {ENCODEC}}}".replace("'", "")],
        ["generation.audio.adapter (code-sum)", "has one", "code-mlp"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_know_them_is_refused(name: str, file: Path) -> None:
    overrides, words = REFUSED[name]
    with pytest.raises(WiringError) as caught:
        read_plan(file, overrides)
    for word in words:
        assert word in str(caught.value), str(caught.value)


@pytest.mark.parametrize("layout", ["line", "frames"])
def test_encodec_is_wired_in_both_layouts(layout: str, file: Path) -> None:
    options = {**ENCODEC, "layout": layout}
    parts = {"encoder": f"{{use: encodec, options: {options}}}".replace("'", "")}
    if layout == "line":
        parts |= {"adapter": "{use: code-mlp}", "head": "{use: code-mlp}"}
    found = read_plan(file, [f"model.generation.audio.{name}={value}" for name, value in parts.items()])
    assert found.model.generation["audio"].facts.shape == ((16,) if layout == "line" else (8, 2))


def test_a_frame_is_one_slot_and_one_loss(plan: RunPlan, model: Any) -> None:
    batch = batch_of(plan)
    items = batch.generation["audio"]
    assert items.predict_at.shape == (4 * FRAMES,)
    with torch.no_grad():
        losses = model(batch, {"generation.audio": 1.0})
        codes, embedded = model.generation["audio"](items.items)
        assert codes.shape == (4, FRAMES, Q)
        assert embedded.shape == (4, FRAMES, 32)
        assert losses.counts["generation.audio"] == 4 * FRAMES
        embeds, _ = model._embed(batch)
        rows, slots = batch.ids.shape
        hidden = model.language_model(embeds.view(rows, slots, -1), batch.positions, batch.packed)
        head = model.generation["audio"].head
        expected = head.loss(hidden.flatten(0, 1)[items.predict_at], codes.flatten(0, 1)[items.targets]).sum()
    torch.testing.assert_close(losses.sums["generation.audio"], expected)


def test_tables_are_taken_from_the_codebooks(model: Any) -> None:
    path = model.generation["audio"]
    rows, books = path.adapter.table.weight.view(Q, K, -1), path.encoder.codebook()
    torch.testing.assert_close(rows / rows[0, 0, 0], books / books[0, 0, 0])


def test_sounds_are_made_and_mind_no_mates(model: Any) -> None:
    prompts = ["a bright low c", "a mellow high f sharp"]
    codes = model.generate(prompts, modality="audio", num_per_prompt=2, guidance=3.0, return_codes=True)
    assert codes.shape == (4, FRAMES, Q)
    assert codes.dtype == torch.int64
    assert len({tuple(code.flatten().tolist()) for code in codes}) == 4
    alone = model.generate(prompts[1], modality="audio", guidance=3.0, return_codes=True)
    assert torch.equal(alone[0], codes[2])
    made = model.generate(prompts, modality="audio", num_per_prompt=2, guidance=3.0)
    assert all(torch.equal(one.codes, code) for one, code in zip(made, codes, strict=True))
    assert made[0].artefact.shape == (160,)


def test_generating_equals_the_training_pass(model: Any) -> None:
    """What is likeliest at each step, fed back in whole, is the likeliest again."""
    prompt = "a bright middle a"
    codes = model.generate(prompt, modality="audio", guidance=1.0, temperature=0.0, return_codes=True)
    path = model.generation["audio"]
    ids = torch.tensor(item_prompt(model, "audio", prompt, [0]).conditional)
    with torch.no_grad():
        embeds = torch.cat((model.language_model.embed(ids), path.adapter(codes)[0, :-1]))
        length = len(embeds)
        hidden = model.language_model(
            embeds[None], torch.arange(length)[None], packed_plan([[length]], length)
        )
        again = path.head.sample(hidden[0, len(ids) - 1 :], None, guidance=1.0, temperature=0.0, draws=None)
    assert torch.equal(again, codes[0])


def test_encode_and_decode_take_frames(model: Any) -> None:
    sounds = [np.sin(np.arange(160) / (3 + place)).astype(np.float32) for place in range(3)]
    codes = model.encode("audio", sounds)
    assert codes.shape == (3, FRAMES, Q)
    again = model.decode("audio", codes)
    assert [one.shape for one in again] == [(160,)] * 3
    with pytest.raises(RunFileError, match=rf"decode takes \[N, {FRAMES}, {Q}\], got \[3, {FRAMES * Q}\]"):
        model.decode("audio", codes.flatten(1))
    with pytest.raises(RunFileError, match="codes run from 0 to 7, but these from 8 to 8"):
        model.decode("audio", torch.full_like(codes, 8))


def test_no_table_is_made_of_all_frames(plan: RunPlan, model: Any) -> None:
    path, facts = model.generation["audio"], plan.model.generation["audio"].facts
    with torch.no_grad():
        embedder = CodeEmbedder(path.adapter, facts, num_items=1000)
        assert embedder.alike
        assert embedder.table is None
        codes = torch.randint(K, (2, 4, Q))
        torch.testing.assert_close(embedder(codes), path.adapter(codes)[:, -1])


def test_precomputed_frames_are_the_same_frames(file: Path, plan: RunPlan, tmp_path: Path) -> None:
    precompute(plan, tmp_path, World(0, 1, torch.device("cpu")), names=["play"])
    answered = read_plan(file, [f"data.play.precomputed={tmp_path}"])
    raw, stored = batch_of(plan), batch_of(answered)
    encoder: Any = compose_plan(plan).eval().generation["audio"].encoder
    codes = encoder.encode(raw.generation["audio"].items)
    assert torch.equal(stored.generation["audio"].items[PRECOMPUTED], codes)
    assert codes.shape == (4, FRAMES, Q)


def test_explained_with_their_number(plan: RunPlan) -> None:
    shapes = {row.address: row.shapes for row in explain(plan).parts}
    assert shapes["generation.audio.encoder"] == f"audio <-> {FRAMES} x {Q} codes of {K}"
    assert shapes["generation.audio.adapter"] == f"[{FRAMES}, {Q}] -> [{FRAMES}, 32]"
    assert shapes["generation.audio.head"] == f"[32] -> {Q} x {K} codes"


def test_the_depth_head_costs_its_weights_at_every_code(plan: RunPlan) -> None:
    made = compose_plan(plan, object(), weights=False, device="meta")  # type: ignore[arg-type]
    flops = SampleFlops(plan, made)
    cost = flops.forward(Shape(text=4, learnt_text=0, generation="audio"))["generation.audio.head"]
    head: Any = made.generation["audio"].head
    each = sum(
        parameter.numel() for block in head.blocks for parameter in block.parameters() if parameter.ndim > 1
    )
    once = head.enter.weight.numel() + sum(output.weight.numel() for output in head.outputs)
    weights = 2.0 * FRAMES * (Q * each + once)
    assert weights <= cost <= 1.1 * weights
    assert "generation.audio.head" not in flops.estimated


def test_the_shape_of_an_item_follows_from_its_facts() -> None:
    line = GenerationFacts("audio", "codes", 6, 4, 8, (6,))
    frames = GenerationFacts("audio", "codes", 6, 4, 8, (6,), codebooks=2)
    latents = GenerationFacts("audio", "latents", 6, 4, None, (6,))
    assert (line.shape, frames.shape, latents.shape) == ((6,), (6, 2), (6, 4))
