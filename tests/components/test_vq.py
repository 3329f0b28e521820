"""The VQ tokenizer: the reference sizes, transformers as an oracle, and that it learns."""

import math

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from janus_plugins.core.errors import CheckpointError
from janus_plugins.encoders.vq.model import build
from janus_plugins.encoders.vq.processor import VqProcessor
from janus_plugins.encoders.vq.quantizer import Quantizer, entropy_loss
from janus_plugins.encoders.vq.spec import VqConfig

TINY = {
    "image_size": 16,
    "channels": 8,
    "multipliers": (1, 2, 2),
    "num_res_blocks": 1,
    "z_channels": 16,
    "code_width": 4,
    "codebook_size": 32,
    "norm_groups": 4,
}


def tokenizer(seed=0, **options):
    torch.manual_seed(seed)
    config = VqConfig(**{**TINY, **options})
    return build(config, config.facts())


def test_the_reference_tokenizer():
    config = VqConfig()
    with torch.device("meta"):
        made = build(config, config.facts())
    count = {name: sum(each.numel() for each in part.parameters()) for name, part in made.named_children()}
    assert count["encoder"] == 29_298_176
    assert count["decoder"] == 42_449_795
    assert count["quantize"] == 131_072
    assert sum(count.values()) == 71_883_403
    facts = config.facts()
    assert (facts.tokens, facts.grid, facts.codebook_size, facts.width) == (576, (24, 24), 16384, 8)
    assert facts.form == "codes"


def test_names_are_the_official_ones():
    with torch.device("meta"):
        config = VqConfig()
        names = set(build(config, config.facts()).state_dict())
    assert {
        "encoder.conv_in.weight",
        "encoder.conv_blocks.0.res.1.norm1.weight",
        "encoder.conv_blocks.2.res.0.nin_shortcut.weight",
        "encoder.conv_blocks.3.downsample.conv.bias",
        "encoder.conv_blocks.4.attn.1.proj_out.weight",
        "encoder.mid.1.q.weight",
        "encoder.norm_out.bias",
        "encoder.conv_out.weight",
        "quantize.embedding.weight",
        "quant_conv.weight",
        "post_quant_conv.bias",
        "decoder.conv_in.weight",
        "decoder.mid.2.conv2.weight",
        "decoder.conv_blocks.0.attn.2.k.weight",
        "decoder.conv_blocks.0.upsample.conv.weight",
        "decoder.conv_blocks.4.res.2.conv1.weight",
        "decoder.conv_out.bias",
    } <= names
    assert not any(name.startswith("encoder.conv_blocks.4.downsample") for name in names)
    assert not any(name.startswith("decoder.conv_blocks.4.upsample") for name in names)


def transformers_name(name: str) -> str:
    """Spell an official name as transformers does. Source: convert_janus_weights_to_hf.py."""
    for side, level in (("encoder", "down"), ("decoder", "up")):
        name = name.replace(f"{side}.conv_blocks", f"{side}.{level}").replace(".res.", ".block.")
        for index, part in enumerate(("block_1", "attn_1", "block_2")):
            name = name.replace(f"{side}.mid.{index}.", f"{side}.mid.{part}.")
    return name


@pytest.fixture(scope="module")
def pair():
    """Ours and transformers' with the same weights."""
    from transformers.models.janus import JanusVQVAEConfig
    from transformers.models.janus.modeling_janus import JanusVQVAE

    options = {"channels": 32, "multipliers": (1, 1, 2), "num_res_blocks": 2, "norm_groups": 32}
    ours = tokenizer(**options).eval()
    config = JanusVQVAEConfig(
        embed_dim=4,
        num_embeddings=32,
        latent_channels=16,
        base_channels=32,
        channel_multiplier=[1, 1, 2],
        num_res_blocks=2,
        num_patches=4,
    )
    theirs = JanusVQVAE(config).eval()
    renamed = {transformers_name(name): tensor for name, tensor in ours.state_dict().items()}
    theirs.load_state_dict(renamed, strict=True)
    return ours, theirs


def test_decoding_equals_transformers(pair):
    ours, theirs = pair
    ids = torch.randint(32, (2, 16))
    with torch.no_grad():
        assert (ours.decode(ids) - theirs.decode(ids)).abs().max() < 1e-5


def test_the_encoder_equals_transformers(pair):
    ours, theirs = pair
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = theirs.quant_conv(theirs.encoder(pixels))
        assert (ours.quant_conv(ours.encoder(pixels)) - expected).abs().max() < 1e-5


def test_codes_are_the_nearest_of_the_normalised_codebook():
    made = tokenizer().eval()
    with torch.no_grad():
        made.quantize.embedding.weight.mul_(torch.rand(32, 1) * 9 + 0.1)  # lengths must not matter
        pixels = torch.randn(3, 3, 16, 16)
        ids = made.encode({"pixels": pixels})
        latent = functional.normalize(made.quant_conv(made.encoder(pixels)), dim=1)
        table = functional.normalize(made.quantize.embedding.weight, dim=1)
        distance = torch.cdist(latent.permute(0, 2, 3, 1).reshape(3, 16, 4), table[None].expand(3, -1, -1))
    assert ids.shape == (3, 16)
    assert ids.dtype == torch.int64
    assert torch.equal(ids, distance.argmin(-1))
    assert torch.allclose(made.codebook().norm(dim=-1), torch.ones(32))
    assert len(ids.unique()) > 4


def test_codes_lie_row_major():
    made = tokenizer().eval()
    made.encoder = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Conv2d(3, 16, 1))
    pixels = torch.zeros(1, 3, 16, 16)
    pixels[:, :, 0:4, 12:16] = torch.tensor([5.0, -3.0, 2.0])[:, None, None]
    ids = made.encode({"pixels": pixels})[0]
    assert [index for index in range(16) if ids[index] != ids[15]] == [3]


def test_decoding_places_codes_where_encoding_found_them():
    made = tokenizer().eval()
    made.decoder = torch.nn.Upsample(scale_factor=4)
    codes = torch.zeros(1, 16, dtype=torch.int64)
    codes[0, 3] = 7
    decoded = made.decode(codes)[0]
    differs = (decoded - decoded[:, -1:, :1]).abs().sum(0) > 1e-6
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[0:4, 12:16] = True
    assert torch.equal(differs, expected)


def test_loss_names_and_straight_through_gradient():
    made = tokenizer(loss={"l2": 2.0, "l1": 0.5, "commitment": 0.3})
    pixels = torch.randn(4, 3, 16, 16).clamp(-1, 1)
    losses = made.reconstruction_loss({"pixels": pixels})
    assert set(losses) == {"loss", "reconstruction", "codebook", "commitment", "codes_used"}
    assert all(each.ndim == 0 for each in losses.values())
    total = losses["reconstruction"] + losses["codebook"] + 0.3 * losses["commitment"]
    assert torch.allclose(losses["loss"], total)
    made.eval()
    with torch.no_grad():
        back = made.decode(made.encode({"pixels": pixels}))
        expected = 2 * functional.mse_loss(back, pixels) + 0.5 * functional.l1_loss(back, pixels)
    assert torch.allclose(losses["reconstruction"], expected, atol=1e-6)
    losses["reconstruction"].backward()
    assert made.encoder.conv_in.weight.grad.abs().sum() > 0
    assert made.quantize.embedding.weight.grad is None or not made.quantize.embedding.weight.grad.any()


def test_codebook_and_commitment_pull_on_their_own_side_only():
    made = tokenizer()
    items = {"pixels": torch.randn(4, 3, 16, 16)}
    made.reconstruction_loss(items)["codebook"].backward()
    assert made.quantize.embedding.weight.grad.any()
    assert made.encoder.conv_in.weight.grad is None
    made.zero_grad()
    made.reconstruction_loss(items)["commitment"].backward()
    assert made.encoder.conv_in.weight.grad.any()
    assert (
        not made.quantize.embedding.weight.grad.any()
        if made.quantize.embedding.weight.grad is not None
        else True
    )


def smooth_pictures(count: int, channels: int) -> torch.Tensor:
    coarse = torch.rand(count, channels, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return functional.interpolate(coarse, size=16, mode="bilinear")


def train(made, pixels, steps, rate=3e-3):
    optimizer = torch.optim.AdamW(made.parameters(), lr=rate, weight_decay=0.0)
    seen = []
    for _ in range(steps):
        losses = made.reconstruction_loss({"pixels": pixels})
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        seen.append(losses["reconstruction"].item())
    return seen, losses


def test_it_learns_pictures():
    made = tokenizer(in_channels=1)
    seen, losses = train(made, smooth_pictures(8, 1), 60)
    assert seen[-1] < 0.5 * seen[0]
    assert losses["codes_used"] > 8


def codes_in_use(revive_after):
    """Fit a codebook that starts on the far side of what is encoded; count the codes that end up in use."""
    torch.manual_seed(0)
    vectors = functional.normalize(torch.randn(256, 4) + torch.tensor([6.0, 0, 0, 0]), dim=-1)
    quantizer = Quantizer(16, 4, revive_after)
    with torch.no_grad():
        quantizer.embedding.weight.copy_(functional.normalize(-vectors[:16], dim=-1))
        quantizer.embedding.weight[0] = vectors[0]
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=3e-2)
    for _ in range(200):
        table = quantizer.embedding()
        ids = quantizer.nearest(vectors, table)
        losses = quantizer.losses(vectors, table, ids)
        optimizer.zero_grad()
        (losses["codebook"] + losses.get("revive", 0)).backward()
        optimizer.step()
    return len(ids.unique())


def test_codes_are_unused_for_steps_not_batches():
    quantizer = Quantizer(8, 4, revive_after=2)
    quantizer.set_accumulation(3)
    table, vectors = quantizer.embedding().detach(), torch.randn(2, 4)
    for step in range(1, 4):
        for batch in range(3):
            quantizer.losses(vectors, table, torch.tensor([batch, 3]))
        assert quantizer.unused_for.tolist() == [0, 0, 0, 0, *[step] * 4]
    assert "used" not in quantizer.state_dict()


def test_unused_codes_are_revived():
    assert codes_in_use(None) == 1
    assert codes_in_use(5) >= 8


def test_the_record_of_unused_codes_is_saved_and_moves_in_training_only():
    made = tokenizer(revive_after=3)
    items = {"pixels": torch.randn(2, 3, 16, 16)}
    for _ in range(2):
        made.reconstruction_loss(items)
    unused = made.quantize.unused_for.clone()
    ids = made.encode(items).unique()
    assert (unused[ids] == 0).all()
    assert unused.max() == 2
    other = tokenizer(1, revive_after=3)
    other.load_state_dict(made.state_dict())
    assert torch.equal(other.quantize.unused_for, unused)
    made.eval().reconstruction_loss(items)
    assert torch.equal(made.quantize.unused_for, unused)


def test_entropy_rewards_sure_choices_of_many_codes():
    table = torch.eye(4)
    spread, collapsed, unsure = table.repeat(4, 1), table[:1].repeat(16, 1), torch.full((16, 4), 0.5)
    assert entropy_loss(spread, table).item() == pytest.approx(-math.log(4), abs=1e-4)
    assert entropy_loss(collapsed, table).item() == pytest.approx(0, abs=1e-4)
    assert entropy_loss(unsure, table).item() == pytest.approx(0, abs=1e-4)
    made = tokenizer(loss={"entropy": 0.2})
    losses = made.reconstruction_loss({"pixels": torch.randn(2, 3, 16, 16)})
    rest = losses["reconstruction"] + losses["codebook"] + 0.25 * losses["commitment"]
    assert torch.allclose(losses["loss"], rest + 0.2 * losses["entropy"])


def test_training_is_reproducible():
    pixels = smooth_pictures(4, 1)
    runs = [train(tokenizer(in_channels=1, revive_after=2), pixels, 6)[0] for _ in range(2)]
    assert runs[0] == runs[1]


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: {"model": t}], ids=["plain", "LlamaGen's"])
def test_official_files_load_by_name(tmp_path, wrap):
    published = tokenizer(1)
    tensors = {**published.state_dict(), "quantize.codebook_used": torch.zeros(65536)}
    torch.save(wrap(tensors), tmp_path / "vq_ds16_t2i.pt")
    made = tokenizer(2, revive_after=3)
    made.load_weights(str(tmp_path / "vq_ds16_t2i.pt"))
    ids = torch.randint(32, (1, 16))
    with torch.no_grad():
        assert torch.equal(made.decode(ids), published.decode(ids))


def test_every_key_is_accounted_for(tmp_path):
    tensors = dict(tokenizer().state_dict())
    tensors["stray"] = tensors.pop("decoder.conv_in.bias")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing \(decoder.conv_in.bias\); 1 unexpected \(stray\)"):
        tokenizer().load_weights(str(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 18}, "image_size 18 is not a multiple of 4, the downsampling of 3 multipliers"),
        ({"norm_groups": 3}, "8 channels do not divide into norm_groups 3"),
        ({"multipliers": ()}, "at least 1"),
        ({"codebook_size": 1}, "greater than or equal to 2"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        VqConfig(**{**TINY, **options})


def test_the_processor_fits_the_tokenizer():
    from PIL import Image

    made = tokenizer(in_channels=1).eval()
    processor = VqProcessor(made.config)
    arrays = processor(Image.new("RGB", (50, 20), (255, 255, 255)))
    items = {name: torch.from_numpy(array)[None] for name, array in arrays.items()}
    ids = made.encode(items)
    assert processor.num_tokens(arrays) == ids.shape[1]
    picture = processor.restore(made.decode(ids)[0].detach().numpy())
    assert picture.size == (16, 16)
