"""Sound codecs in frames of codes: DAC and Mimi as transformers runs them, their weights, and EnCodec's layouts."""

import pytest
import torch
from safetensors.torch import save_file
from transformers import DacModel, MimiModel

from janus_plugins.core.errors import CheckpointError
from janus_plugins.encoders.codecs.dac_spec import DAC, DacConfig
from janus_plugins.encoders.codecs.encodec_spec import ENCODEC
from janus_plugins.encoders.codecs.mimi_spec import MIMI, MimiConfig
from tests.components.keeps import made

CODECS = {"dac": (DAC, DacModel, "n_quantizers"), "mimi": (MIMI, MimiModel, "num_quantizers")}


def alive(spec, seed=0, **options):
    """A codec whose codes lie where its frames do, as trained ones do."""
    codec = made(spec, {**spec.config.tiny(), **options}, seed)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for each in codec.codec.parameters():
            if each.ndim > 1:
                each.normal_(std=each[0].numel() ** -0.5, generator=draw)
        for name, each in codec.codec.named_buffers():
            if name.endswith("cluster_usage"):
                each.uniform_(0.5, 2.0, generator=draw)
    return codec


def sounds(codec, count=3):
    draw = torch.Generator().manual_seed(2)
    return {"samples": torch.randn(count, 1, codec.config.samples, generator=draw)}


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("num_codebooks", [1, 3])
def test_codes_and_sound_are_those_of_transformers(name, num_codebooks):
    spec, _, number = CODECS[name]
    codec = alive(spec, num_codebooks=num_codebooks)
    items, facts = sounds(codec), codec.config.facts()
    with torch.no_grad():
        codes = codec.encode(items)
        theirs = codec.codec.encode(items["samples"], **{number: num_codebooks}).audio_codes
        sound = codec.codec.decode(audio_codes=theirs).audio_values.reshape(3, 1, -1)
        mine = codec.decode(codes)
    assert codes.shape == (3, *facts.shape)
    assert torch.equal(codes.reshape(3, facts.tokens, num_codebooks), theirs.transpose(1, 2))
    assert len(codes.unique()) > 3
    assert mine.shape == items["samples"].shape
    # DAC's decoder is some samples short where a stride is odd.
    assert codec.config.hop > mine.shape[-1] - sound.shape[-1] >= 0
    assert torch.allclose(mine[..., : sound.shape[-1]], sound, atol=1e-5)
    assert codec.encode(sounds(codec, 0)).shape == (0, *facts.shape)


@pytest.mark.parametrize("name", CODECS)
def test_the_codebooks_are_what_the_decoder_sums(name):
    spec = CODECS[name][0]
    codec = alive(spec)
    facts = codec.config.facts()
    draw = torch.Generator().manual_seed(3)
    codes = torch.randint(facts.codebook_size, (1, *facts.shape), generator=draw)
    kept = []
    # A transformers whose Mimi has no halves names the decoder's first module outright.
    first = codec.codec.decoder if getattr(codec, "halves", True) else codec.codec.upsample
    hook = first.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    with torch.no_grad():
        books = codec.codebook()
        codec.decode(codes)
    hook.remove()
    assert books.shape == (facts.codebooks, facts.codebook_size, facts.width)
    summed = sum(books[q][codes[0, :, q]] for q in range(facts.codebooks))
    # A bias of DAC's projection is part of what each code adds.
    assert torch.allclose(kept[0][0].T, summed, atol=1e-5)


@pytest.mark.parametrize("name", CODECS)
def test_published_weights_load_to_the_last_key(tmp_path, name):
    spec, theirs, number = CODECS[name]
    published = alive(spec, 4)
    published.codec.save_pretrained(tmp_path)  # under the names of published files
    codec = made(spec, spec.config.tiny(), 5)
    codec.load_weights(str(tmp_path))
    items = sounds(codec)
    with torch.no_grad():
        codes = codec.encode(items)
        assert torch.equal(codes, published.encode(items))
        assert torch.equal(codec.decode(codes), published.decode(codes))
        again = theirs.from_pretrained(tmp_path).eval()
        seen = again.encode(items["samples"], **{number: codec.config.num_codebooks}).audio_codes
    assert torch.equal(seen.transpose(1, 2), codes)
    save_file({"stray": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing.*1 unexpected \(stray\)"):
        codec.load_weights(str(tmp_path))


def test_mimi_is_published_without_the_names_of_its_halves(tmp_path):
    published = alive(MIMI, 4)
    places = {
        "encoder.encoder_seanet.": "encoder.", "encoder.encoder_transformer.": "encoder_transformer.",
        "encoder.downsample.": "downsample.", "decoder.upsample.": "upsample.",
        "decoder.decoder_transformer.": "decoder_transformer.", "decoder.decoder_seanet.": "decoder.",
    }  # fmt: skip
    tensors = {}
    for name, each in published.codec.state_dict().items():
        old = next((old for new, old in places.items() if name.startswith(new)), "")
        new = next((new for new in places if name.startswith(new)), "")
        tensors[old + name.removeprefix(new)] = each.clone()
    assert {name.split(".")[0] for name in tensors} == {
        "encoder", "encoder_transformer", "downsample", "upsample", "decoder_transformer", "decoder", "quantizer",
    }  # fmt: skip
    save_file(tensors, tmp_path / "model.safetensors")
    codec = made(MIMI, MimiConfig.tiny(), 5)
    codec.load_weights(str(tmp_path))
    with torch.no_grad():
        assert torch.equal(codec.encode(sounds(codec)), published.encode(sounds(codec)))


def test_mimi_changes_its_number_format():
    codec = alive(MIMI)
    with torch.no_grad():
        codec.encode(sounds(codec))
        codec = codec.to(torch.bfloat16)
        sound = codec.decode(codec.encode(sounds(codec)))
    assert sound.dtype == torch.bfloat16


def test_defaults_are_the_published_sizes():
    with torch.device("meta"):
        dac, mimi = made(DAC, {}), made(MIMI, {})
    assert (dac.config.hop, dac.config.width, dac.config.facts().shape) == (320, 1024, (150, 8))
    assert (mimi.config.hop, mimi.config.facts().shape) == (1920, (25, 8))
    assert len(dac.codec.quantizer.quantizers) == 32
    assert dac.codec.config.sampling_rate == mimi.codec.config.sampling_rate == 24_000


def test_frames_are_the_line_folded():
    tiny = ENCODEC.config.tiny()
    line, frames = made(ENCODEC, tiny, 7), made(ENCODEC, {**tiny, "layout": "frames"}, 7)
    items, size = sounds(line), tiny["codebook_size"]
    with torch.no_grad():
        one, other = line.encode(items), frames.encode(items)
        assert torch.equal(one.view(3, -1, 2), other + size * torch.arange(2))
        assert torch.equal(line.decode(one), frames.decode(other))
    assert torch.equal(frames.codebook().flatten(0, 1), line.codebook())
    assert (line.config.facts().shape, frames.config.facts().shape) == ((16,), (8, 2))
    assert frames.config.facts().codebook_size == size
    single = made(ENCODEC, {**tiny, "layout": "frames", "num_codebooks": 1}, 7)
    assert single.encode(items).shape == (3, 8)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (DacConfig, {"num_codebooks": 4}, "num_codebooks 4 is more than codebooks 3"),
        (DacConfig, {"codebook_size": 6}, "no power of 2"),
        (DacConfig, {"decoder_width": 18}, "cannot be halved 2 times"),
        (DacConfig, {"ratios": (1, 2)}, "at least 2"),
        (MimiConfig, {"rate": 3201}, "rate 3201 is no multiple of the strides' product 4"),
        (MimiConfig, {"width": 6}, "no multiple of twice num_heads 2"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(config, options, message):
    with pytest.raises(ValueError, match=message):
        config(**{**config.tiny(), **options})
