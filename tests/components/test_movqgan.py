"""MoVQGAN: codes and pictures as diffusers makes them, learning, weights, and items of a batch apart."""

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from janus_plugins.core.errors import BadSample, CheckpointError
from janus_plugins.encoders.movqgan.spec import MOVQGAN, MovqganConfig
from tests.components.keeps import made, pictures, processor_of

TINY = MovqganConfig.tiny()


def alive(seed=0, **options):
    """A tokenizer whose codes lie as wide as what it compares with them."""
    tokenizer = made(MOVQGAN, {**TINY, **options}, seed)
    with torch.no_grad():
        tokenizer.vq.quantize.embedding.weight.normal_(std=0.5)
    return tokenizer


def pixels(count=3, channels=3):
    return torch.randn(count, channels, 8, 8, generator=torch.Generator().manual_seed(2)).clamp(-1, 1)


def test_codes_and_pictures_are_those_of_diffusers():
    tokenizer, given = alive(), pixels()
    codes = tokenizer.encode({"pixels": given})
    hidden = tokenizer.vq.encode(given).latents
    assert codes.flatten().tolist() == tokenizer.vq.quantize(hidden)[2][2].flatten().tolist()
    assert len(codes.unique()) >= 3
    assert torch.allclose(tokenizer.decode(codes), tokenizer.vq.decode(hidden).sample, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"in_channels": 1}, {"attend": (True, False)}], ids=str)
def test_facts_equal_behaviour(options):
    tokenizer = alive(**options)
    facts = tokenizer.config.facts()
    given = pixels(channels=tokenizer.config.in_channels)
    codes = tokenizer.encode({"pixels": given})
    assert codes.shape == (3, facts.tokens) == (3, 16)
    assert (codes.dtype, facts.grid, facts.width) == (torch.int64, (4, 4), 4)
    assert 0 <= codes.min() <= codes.max() < facts.codebook_size
    assert tokenizer.decode(codes).shape == given.shape
    assert tokenizer.codebook().shape == (facts.codebook_size, facts.width)
    assert torch.equal(tokenizer.codebook(), tokenizer.vq.quantize.embedding.weight)
    for row in range(3):
        assert torch.equal(tokenizer.encode({"pixels": given[row : row + 1]})[0], codes[row])
        assert torch.allclose(
            tokenizer.decode(codes[row : row + 1])[0], tokenizer.decode(codes)[row], atol=1e-5
        )


def test_the_decoder_is_told_the_codes():
    tokenizer = alive()
    codes = tokenizer.encode({"pixels": pixels()})
    grid = tokenizer.vq.quantize.embedding(codes).transpose(1, 2).reshape(3, 4, 4, 4)
    told = tokenizer.vq.decoder(tokenizer.vq.post_quant_conv(grid), grid)
    otherwise = tokenizer.vq.decoder(tokenizer.vq.post_quant_conv(grid), grid.flip(0))
    assert torch.equal(told, tokenizer.decode(codes))
    assert not torch.allclose(told, otherwise, atol=1e-3)


def test_it_learns_to_reconstruct():
    tokenizer, given = alive().train(), {"pixels": pixels()}
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        parts = tokenizer.reconstruction_loss(given)
        parts["loss"].backward()
        if not losses:
            assert all(each.grad is not None and each.grad.any() for each in tokenizer.parameters())
        optimizer.step()
        losses.append(float(parts["reconstruction"].detach()))
    assert losses[-1] < 0.6 * losses[0]
    assert set(parts) == {"loss", "reconstruction", "codebook", "commitment", "codes_used"}


def test_bfloat16_and_the_meta_device():
    tokenizer = alive().to(torch.bfloat16)
    codes = tokenizer.encode({"pixels": pixels()})
    assert tokenizer.decode(codes).dtype == torch.bfloat16
    assert tokenizer.decode(codes).isfinite().all()
    with torch.device("meta"):
        empty = made(MOVQGAN, TINY)
    assert all(each.is_meta for each in empty.parameters())
    shapes = {name: each.shape for name, each in alive().state_dict().items()}
    assert {name: each.shape for name, each in empty.state_dict().items()} == shapes


def test_weights_of_diffusers_load(tmp_path):
    published = alive(4)
    published.vq.save_pretrained(tmp_path)
    tokenizer = made(MOVQGAN, TINY, 5)
    tokenizer.load_weights(str(tmp_path))
    codes = tokenizer.encode({"pixels": pixels()})
    assert torch.equal(codes, published.encode({"pixels": pixels()}))
    assert torch.equal(tokenizer.decode(codes), published.decode(codes))
    save_file({"stray": torch.zeros(1)}, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match="missing"):
        tokenizer.load_weights(str(tmp_path))


def test_published_size():
    with torch.device("meta"):
        tokenizer = made(MOVQGAN, {})
    assert tokenizer.config.facts().tokens == 1024
    assert sum(each.numel() for each in tokenizer.parameters()) == 67_832_495


def test_pictures_go_in_and_come_out():
    processor = pickle.loads(pickle.dumps(processor_of(MOVQGAN, TINY)))
    tokenizer = alive()
    items = {"pixels": torch.stack([torch.from_numpy(processor(each)["pixels"]) for each in pictures()])}
    decoded = tokenizer.decode(tokenizer.encode(items)).detach().numpy()
    assert processor.restore(decoded[0]).size == (8, 8)
    assert np.isfinite(processor.dummy()["pixels"]).all()
    with pytest.raises(BadSample):
        processor(object())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attend": (True,)}, "attend has 1 levels, channels 2"),
        ({"image_size": 9}, "image_size 9 is not a multiple of 2"),
        ({"channels": (32, 40)}, "40 channels are no multiple of 32"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MovqganConfig(**{**TINY, **options})
