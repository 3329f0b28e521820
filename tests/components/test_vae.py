"""The KL autoencoder: latents and pictures as diffusers makes them, their scale, learning, published weights."""

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from janus_plugins.core.errors import BadSample, CheckpointError
from janus_plugins.encoders.vae.scale import LatentScale
from janus_plugins.encoders.vae.spec import VAE, VaeConfig
from tests.components.keeps import made, pictures, processor_of
from tests.components.original_vae import Original

TINY = VaeConfig.tiny()
PLAIN = {**TINY, "patch": 1, "scale": 1.0}


def pixels(count=3, channels=3, seed=2):
    return torch.randn(count, channels, 8, 8, generator=torch.Generator().manual_seed(seed)).clamp(-1, 1)


def test_latents_and_pictures_are_those_of_diffusers():
    tokenizer = made(VAE, {**PLAIN, "scale": 0.25, "shift": 0.5})
    given = pixels()
    with torch.no_grad():
        mean = tokenizer.vae.encode(given).latent_dist.mean
        latents = tokenizer.encode({"pixels": given})
        assert torch.allclose(latents, ((mean - 0.5) * 0.25).flatten(2).transpose(1, 2), atol=1e-6)
        assert torch.allclose(tokenizer.decode(latents), tokenizer.vae.decode(mean).sample, atol=1e-5)


def test_a_patch_holds_its_places_by_channel_as_in_mar():
    single, joined = made(VAE, PLAIN), made(VAE, {**PLAIN, "patch": 2})
    with torch.no_grad():
        places = single.encode({"pixels": pixels()}).transpose(1, 2).view(3, 4, 4, 4)
        latents = joined.encode({"pixels": pixels()})
        wanted = torch.einsum("nchpwq->nhwcpq", places.view(3, 4, 2, 2, 2, 2)).reshape(3, 4, 16)
        assert torch.allclose(latents, wanted, atol=1e-6)
        one, other = joined.decode(latents), single.decode(places.flatten(2).transpose(1, 2))
    assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"patch": 1},
        {"in_channels": 1},
        {"attend_encoder": False, "attend_decoder": True},
        {"quant_conv": False},
        {"latents": "sample"},
    ],
    ids=str,
)
def test_facts_equal_behaviour(options):
    tokenizer = made(VAE, {**TINY, **options})
    facts, given = tokenizer.config.facts(), pixels(channels=tokenizer.config.in_channels)
    with torch.no_grad():
        latents = tokenizer.encode({"pixels": given})
        assert latents.shape == (3, facts.tokens, facts.width)
        assert (facts.form, facts.codebook_size, latents.dtype) == ("latents", None, torch.float32)
        assert facts.grid == (tokenizer.config.side,) * 2
        decoded = tokenizer.decode(latents)
        assert decoded.shape == given.shape
        for row in range(3):
            alone = tokenizer.encode({"pixels": given[row : row + 1]})
            assert torch.allclose(alone[0], latents[row], atol=1e-5)
            assert torch.allclose(tokenizer.decode(alone)[0], decoded[row], atol=1e-4)


def test_drawn_latents_lie_around_the_mean_and_are_the_same_each_time():
    tokenizer = made(VAE, {**PLAIN, "latents": "sample"})
    with torch.no_grad():
        tokenizer.vae.quant_conv.bias[4:] = -2.0
        given = pixels(64)
        mean, log_variance = tokenizer._posterior(given)
        first = tokenizer.encode({"pixels": given})
        torch.manual_seed(5)
        assert torch.equal(tokenizer.encode({"pixels": given}), first)
        noise = (first.transpose(1, 2).view(mean.shape) - mean) / (log_variance / 2).exp()
    assert abs(float(noise.mean())) < 0.05
    assert float(noise.std()) == pytest.approx(1, abs=0.05)
    assert abs(np.corrcoef(noise[0].flatten(), noise[1].flatten())[0, 1]) < 0.4


def learnt(options, steps=30, rate=3e-3):
    tokenizer = made(VAE, {**TINY, **options}).train()
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=rate)
    losses = []
    torch.manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        parts = tokenizer.reconstruction_loss({"pixels": pixels(8)})
        parts["loss"].backward()
        optimizer.step()
        losses.append({name: float(value.detach()) for name, value in parts.items()})
    return tokenizer, losses


@pytest.fixture(scope="module")
def trained():
    return learnt({})


def test_it_learns_to_reconstruct(trained):
    tokenizer, losses = trained
    assert losses[-1]["reconstruction"] < 0.85 * losses[0]["reconstruction"]
    assert set(losses[0]) == {"loss", "reconstruction", "kl", "deviation"}
    assert all(each.grad is not None and each.grad.any() for each in tokenizer.parameters())
    with torch.no_grad():
        parts = tokenizer.eval().reconstruction_loss({"pixels": pixels()})
        decoded = tokenizer.decode(tokenizer.encode({"pixels": pixels()}))
    assert float(parts["reconstruction"]) == pytest.approx(float((decoded - pixels()).abs().mean()), rel=1e-4)
    weight = tokenizer.config.loss.kl * 4 * 16 / (3 * 64)
    assert float(parts["loss"]) == pytest.approx(
        float(parts["reconstruction"] + weight * parts["kl"]), rel=1e-6
    )


def test_a_strong_pull_brings_latents_to_a_normal():
    _, weak = learnt({"loss": {"kl": 0.0}}, steps=12)
    _, strong = learnt({"loss": {"kl": 10.0}}, steps=12)
    assert strong[-1]["kl"] < 0.5 * weak[-1]["kl"]


def test_a_trained_scale_is_measured_and_kept(trained, tmp_path):
    tokenizer = trained[0].train()
    with torch.no_grad():
        for _ in range(60):  # as at the end of a schedule, where the weights stand still
            tokenizer.reconstruction_loss({"pixels": pixels(8)})
        tokenizer.eval()
        latents = tokenizer.encode({"pixels": pixels(8)}).view(8, 4, 4, 4)  # [N, T, C, places]
        raw = tokenizer._posterior(pixels(8))[0]
    assert (raw.std((0, 2, 3)) - 1).abs().max() > 0.2
    assert latents.mean((0, 1, 3)).abs().max() < 0.1
    assert (latents.std((0, 1, 3)) - 1).abs().max() < 0.1
    before = {name: each.clone() for name, each in tokenizer.state_dict().items()}
    tokenizer.reconstruction_loss({"pixels": pixels()})
    assert all(torch.equal(each, before[name]) for name, each in tokenizer.state_dict().items())
    save_file(before, tmp_path / "vae.safetensors")
    other = made(VAE, TINY, 7)
    other.load_state_dict(load_file(tmp_path / "vae.safetensors"))
    with torch.no_grad():
        assert torch.equal(other.encode({"pixels": pixels(8)}).view(8, 4, 4, 4), latents)
        half = other.to(torch.bfloat16)
        assert torch.equal(half.scale._read(), tokenizer.scale._read())
        near = half.encode({"pixels": pixels(8)}).view(8, 4, 4, 4)
        assert (near - latents).abs().mean() < 0.05
        assert half.decode(near.view(8, 4, 16)).dtype == torch.bfloat16


def test_a_running_mean_does_not_stand_still_in_16_bits():
    scale = made(VAE, TINY).to(torch.bfloat16).scale
    draw = torch.Generator().manual_seed(0)
    for _ in range(300):
        scale.measure(5 + 0.1 * torch.randn(4, 4, 2, 2, generator=draw), None)
    seen = scale(5 + 0.1 * torch.randn(500, 4, 2, 2, generator=draw))
    assert abs(float(seen.mean())) < 0.1
    assert float(seen.std()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("drawn", [True, False])
def test_a_scale_is_that_of_a_whole_step_on_all_ranks(drawn, monkeypatch):
    """Two micro-batches of unlike sizes on each of two ranks, one after the other, are as one batch."""
    draw = torch.Generator().manual_seed(0)
    one, ranks = LatentScale(4, 0.0, None), [LatentScale(4, 0.0, None) for _ in range(2)]
    for rank in ranks:
        rank.set_accumulation(2)
    for _ in range(3):
        means = 3 + 2 * torch.randn(8, 4, 2, 2, generator=draw)
        variances = torch.rand(8, 4, 2, 2, generator=draw)
        one.measure(means, variances if drawn else None)
        parts = [
            (mean, variance if drawn else None)
            for mean, variance in zip(means.split([1, 2, 3, 2]), variances.split([1, 2, 3, 2]), strict=True)
        ]
        for rank, micro in zip(ranks, (parts[:2], parts[2:]), strict=True):
            before = rank._read().clone()
            rank.measure(*micro[0])
            assert torch.equal(rank._read(), before)
        given = sums(parts[:2]), sums(parts[2:])
        with monkeypatch.context() as both:
            both.setattr(torch.distributed, "is_initialized", lambda: True)
            for rank, last, other in zip(ranks, (parts[1], parts[3]), reversed(given), strict=True):
                both.setattr(torch.distributed, "all_reduce", lambda total, other=other: total.add_(other))
                rank.measure(*last)
        for rank in ranks:
            assert torch.allclose(rank._read(), one._read(), rtol=1e-6)
    assert torch.equal(ranks[0]._read(), ranks[1]._read())
    assert int(ranks[0].batches) == int(one.batches) == 3
    assert set(one.state_dict()) == {"statistics", "batches"}


def sums(parts):
    """Return what a rank has seen in micro-batches: sums, sums of squares, numbers, by channel."""
    squares = [mean.square() + (0 if variance is None else variance) for mean, variance in parts]
    means = torch.cat([mean for mean, _ in parts]).double()
    numbers = torch.full((4,), float(means.numel() // 4), dtype=torch.float64)
    return torch.stack([means.sum((0, 2, 3)), torch.cat(squares).double().sum((0, 2, 3)), numbers])


def test_a_given_scale_is_not_measured():
    tokenizer, _ = learnt({"scale": 0.5}, steps=2)
    assert not list(tokenizer.scale.state_dict())
    assert torch.equal(tokenizer.scale(torch.ones(1, 4, 1, 1)), torch.full((1, 4, 1, 1), 0.5))


def test_weights_of_diffusers_load_with_their_scale(tmp_path):
    published = made(VAE, {**PLAIN, "scale": 0.3, "shift": 0.1}, 4)
    published.vae.register_to_config(scaling_factor=0.3, shift_factor=0.1)
    published.vae.save_pretrained(tmp_path)
    tokenizer = made(VAE, {**TINY, "patch": 1}, 5)
    tokenizer.load_weights(str(tmp_path))
    with torch.no_grad():
        latents = tokenizer.encode({"pixels": pixels()})
        assert torch.allclose(latents, published.encode({"pixels": pixels()}), atol=1e-6)
        assert torch.allclose(tokenizer.decode(latents), published.decode(latents), atol=1e-5)
    chosen = made(VAE, {**PLAIN, "scale": 2.0}, 6)
    chosen.load_weights(str(tmp_path))  # the option wins
    with torch.no_grad():
        assert torch.allclose(chosen.encode({"pixels": pixels()}), (latents / 0.3 + 0.1) * 2, atol=1e-4)


def test_published_statistics_by_channel_are_taken(tmp_path):
    published = made(VAE, PLAIN, 4)
    means, spreads = [0.1, 0.2, -0.3, 0.0], [1.0, 2.0, 0.5, 0.1]
    published.vae.register_to_config(scaling_factor=1.0, latents_mean=means, latents_std=spreads)
    published.vae.save_pretrained(tmp_path)
    tokenizer = made(VAE, {**TINY, "patch": 1}, 5)
    tokenizer.load_weights(str(tmp_path))
    with torch.no_grad():
        raw = published.encode({"pixels": pixels()})
        wanted = (raw - torch.tensor(means)) / torch.tensor(spreads)
        assert torch.allclose(tokenizer.encode({"pixels": pixels()}), wanted, atol=1e-4)


def test_files_of_the_first_diffusers_load(tmp_path):
    published = made(VAE, PLAIN, 4)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = published.vae.state_dict()
    for new, early in old.items():
        state = {name.replace(f".{new}.", f".{early}."): each for name, each in state.items()}
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"scaling_factor": 1.0}))
    tokenizer = made(VAE, {**TINY, "patch": 1}, 5)
    tokenizer.load_weights(str(tmp_path))
    with torch.no_grad():
        one, other = (each.encode({"pixels": pixels()}) for each in (tokenizer, published))
        assert torch.allclose(one, other, atol=1e-6)


def test_weights_of_the_original_code_give_its_latents_and_pictures(tmp_path):
    original = Original(3)
    kept = {"model": {**original.published(), "loss.logvar": torch.zeros(())}}
    torch.save(kept, tmp_path / "kl16.ckpt")
    options = {**PLAIN, "channels": (8, 16), "attend_decoder": True}
    tokenizer = made(VAE, options, 5)
    tokenizer.load_weights(str(tmp_path / "kl16.ckpt"))
    with torch.no_grad():
        mean = original.mean(pixels())
        latents = tokenizer.encode({"pixels": pixels()})
        assert torch.allclose(latents, mean.flatten(2).transpose(1, 2), atol=1e-5)
        assert torch.allclose(tokenizer.decode(latents), original.decode(mean), atol=1e-5)
    with pytest.raises(CheckpointError, match=r"no config\.json that says its scaling_factor"):
        made(VAE, {**options, "scale": None}).load_weights(str(tmp_path / "kl16.ckpt"))


def test_weights_that_do_not_fit_are_refused(tmp_path):
    save_file({"stray": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="missing"):
        made(VAE, PLAIN).load_weights(str(tmp_path))
    (tmp_path / "config.json").write_text("[")
    made(VAE, PLAIN, 1).vae.save_pretrained(tmp_path / "good")
    (tmp_path / "good" / "config.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        made(VAE, PLAIN).load_weights(str(tmp_path / "good"))


@pytest.mark.parametrize(
    ("options", "tokens", "width", "parameters"),
    [
        ({}, 256, 16, 66_467_000),  # MAR's KL-16: a file of 266 MB
        (
            {"channels": (128, 256, 512, 512), "latent_channels": 4, "attend_encoder": False, "patch": 2},
            256,
            16,
            83_653_863,  # Stable Diffusion's
        ),
    ],
)
def test_published_sizes(options, tokens, width, parameters):
    with torch.device("meta"):
        tokenizer = made(VAE, options)
    facts = tokenizer.config.facts()
    assert (facts.tokens, facts.width) == (tokens, width)
    assert sum(each.numel() for each in tokenizer.parameters()) == pytest.approx(parameters, rel=1e-3)


def test_pictures_go_in_and_come_out():
    processor = pickle.loads(pickle.dumps(processor_of(VAE, TINY)))
    tokenizer = made(VAE, TINY)
    items = {"pixels": torch.stack([torch.from_numpy(processor(each)["pixels"]) for each in pictures()])}
    decoded = tokenizer.decode(tokenizer.encode(items)).detach().numpy()
    assert processor.restore(decoded[0]).size == (8, 8)
    with pytest.raises(BadSample):
        processor(object())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 10}, r"image_size 10 is not a multiple of 4: .* 2 levels \(2\) times patch 2"),
        ({"norm_groups": 3}, "8 channels do not divide into norm_groups 3"),
        ({"shift": 0.1}, "shift is 0.1, but scale is not given"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        VaeConfig(**{**TINY, **options})
