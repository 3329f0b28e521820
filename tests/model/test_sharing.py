"""One encoder for both paths: one set of weights, features with gradients, and clear refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from janus_plugins.core.errors import JanusPluginsError, PluginError, RunFileError, WiringError
from janus_plugins.core.runfile import dump_run, load_run, load_run_text
from janus_plugins.core.wiring import resolve
from janus_plugins.data.loader import StepLoader
from janus_plugins.door import plan as read_plan
from janus_plugins.model.compose import compose_plan
from janus_plugins.model.explain import explain
from janus_plugins.model.native import load_native
from tests.tiny import write_tiny

SHARE = "model.understanding.image.encoder.share=generation.image.encoder"
LEARN = "stages.finetune.learn={{language_model: 4e-3, understanding: 4e-3, {}: 4e-3}}"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return read_plan(write_tiny(tmp_path_factory.mktemp("shared")), [SHARE])


@pytest.fixture(scope="module")
def model(shared):
    return compose_plan(shared)


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def micro(plan, model, stage):
    """The micro-batch of a stage's first step."""
    return next(iter(StepLoader(plan, model.tokenizer, stage))).micro[0]


def test_the_weights_exist_once(shared, model):
    names = list(model.state_dict())
    assert not [name for name in names if name.startswith("understanding.image.encoder")]
    places = [value.data_ptr() for value in model.state_dict().values()]
    assert len(set(places)) == len(places)
    addresses = shared.model.addresses()
    assert addresses.count("generation.image.encoder") == 1
    assert "understanding.image.encoder" not in addresses
    rows = {part.address: part for part in explain(shared).parts}
    assert rows["understanding.image.adapter"].shapes == "[16, 4] -> [16, 32]"
    assert explain(shared).total == sum(value.numel() for value in model.parameters())


def test_the_understanding_path_reads_the_vectors_of_the_codes(model):
    pixels = {"pixels": torch.randn(2, 3, 8, 8)}
    encoder = model.generation["image"].encoder
    with torch.no_grad():
        expected = encoder.codebook()[encoder.encode(pixels)]
        assert torch.allclose(encoder.features(pixels), expected, atol=1e-6)
        features = encoder.features(pixels)
        embedded = model.understanding["image"](pixels, [features.shape[1]] * 2)
        assert torch.equal(embedded, model.understanding["image"].adapter(features))
    loss = encoder.features(pixels).square().sum(-1)[0, 0] + encoder.features(pixels)[..., 0].sum()
    loss.backward()
    assert encoder.encoder.conv_in.weight.grad.any()
    assert encoder.quantize.embedding.weight.grad.any()
    model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("learnt", ["generation.image.adapter", "generation.image"])
def test_training_lowers_the_loss_and_touches_what_it_says(tmp_path, learnt):
    plan = read_plan(write_tiny(tmp_path), [SHARE, LEARN.format(learnt)])
    model, stage = compose_plan(plan).train(), plan.run.stages[-1]
    learns = {name for name, _ in model.named_parameters() if name.startswith(tuple(stage.learn))}
    for name, value in model.named_parameters():
        value.requires_grad_(name in learns)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    batch = micro(plan, model, stage)
    scale = {path: 1 / max(count, 1) for path, count in batch.targets().items()}
    optimizer = torch.optim.Adam([value for value in model.parameters() if value.requires_grad], lr=4e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model(batch, scale).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved <= learns
    encoder = {name for name in moved if name.startswith("generation.image.encoder.encoder.")}
    assert bool(encoder) == (learnt == "generation.image")


def test_it_answers_draws_and_comes_back_from_a_folder(model, tmp_path):
    made = model.generate("a seven", return_codes=True, temperature=0)
    said = model.ask("which digit is this?", images=picture(1), max_new_tokens=4, temperature=0)
    model.save(tmp_path / "model")
    again = load_native(tmp_path / "model")
    assert torch.equal(again.generate("a seven", return_codes=True, temperature=0), made)
    assert again.ask("which digit is this?", images=picture(1), max_new_tokens=4, temperature=0) == said
    assert again.plan.run.model == model.plan.run.model


def test_a_share_over_a_base_replaces_the_component(tmp_path):
    write_tiny(tmp_path)
    text = "base: tiny.yaml\nmodel: {understanding: {image: {encoder: {share: generation.image.encoder}}}}\n"
    run = load_run_text(text, str(tmp_path / "over.yaml"))
    assert run.model.understanding["image"].encoder.use is None
    assert load_run_text(dump_run(run), "again.yaml") == run
    (tmp_path / "over.yaml").write_text(text)
    back = load_run(tmp_path / "over.yaml", ["model.understanding.image.encoder.use=siglip"])
    assert back.model.understanding["image"].encoder.share is None


REFUSED: dict[str, tuple[str, type[JanusPluginsError], list[str]]] = {
    "neither": ("model.understanding.image.encoder={}", RunFileError, ["'use'", "'share'"]),
    "both": (
        "model.understanding.image.encoder={use: siglip, share: generation.image.encoder}",
        RunFileError,
        ["'use'", "'share'"],
    ),
    "options of a share": (
        "model.understanding.image.encoder={share: generation.image.encoder, options: {image_size: 8}}",
        RunFileError,
        ["remove them"],
    ),
    "no such part": (
        "model.understanding.image.encoder.share=generation.image.encodr",
        WiringError,
        ["generation.image.encodr", "Did you mean 'generation.image.encoder'"],
    ),
    "no encoder": (
        "model.understanding.image.encoder.share=generation.image.head",
        WiringError,
        ["generation.image.head", "['generation.image.encoder']"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(tmp_path, case):
    override, error, words = REFUSED[case]
    with pytest.raises(error) as caught:
        read_plan(write_tiny(tmp_path), [override])
    assert not [word for word in words if word not in str(caught.value)], str(caught.value)


def test_an_encoder_without_features_cannot_be_shared(tmp_path, monkeypatch):
    run = load_run(write_tiny(tmp_path), [SHARE])
    from janus_plugins.encoders.vq.spec import VqConfig

    monkeypatch.setattr(VqConfig, "feature_facts", lambda self: None)
    with pytest.raises(WiringError, match="vq offers no features"):
        resolve(run)


def test_a_promise_of_features_that_is_not_kept_is_refused(tmp_path, monkeypatch):
    from janus_plugins.encoders.vq.model import Vq

    monkeypatch.delattr(Vq, "features")
    with pytest.raises(PluginError, match=r"janus-plugins/vq .* Vq has no features"):
        compose_plan(read_plan(write_tiny(tmp_path), [SHARE]))


def test_learning_a_shared_encoder_by_its_old_address_is_refused(tmp_path):
    wanted = "stages.adapters.learn={understanding.image.encoder: 1e-3}"
    with pytest.raises(WiringError, match=r"understanding\.image\.encoder"):
        read_plan(write_tiny(tmp_path), [SHARE, wanted])
