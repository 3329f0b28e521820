"""EnCodec: codes in one line, sound as transformers decodes it, weights of both layouts, .wav files."""

import json
import pickle

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from janus_plugins.core.errors import BadSample, CheckpointError
from janus_plugins.encoders.codecs.encodec_spec import ENCODEC, EncodecConfig
from tests.components.keeps import made, processor_of

TINY = EncodecConfig.tiny()


def alive(seed=0, **options):
    """A codec whose codes lie where its frames do."""
    codec = made(ENCODEC, {**TINY, **options}, seed)
    draw = torch.Generator().manual_seed(1)
    for place, layer in enumerate(codec.codec.quantizer.layers):
        layer.codebook.embed.normal_(std=0.2 / (place + 1), generator=draw)
    return codec


def sounds(codec, count=3):
    draw = torch.Generator().manual_seed(2)
    return {"samples": torch.randn(count, 1, codec.config.samples, generator=draw)}


def test_codes_and_sound_are_those_of_transformers():
    codec = alive(seed=7)  # its codes differ: equal ones would prove little
    items = sounds(codec)
    codes = codec.encode(items)
    theirs = codec.codec.quantizer.encode(codec.codec.encoder(items["samples"]))[:2]
    assert torch.equal(codes.reshape(3, 8, 2) - torch.tensor([0, 8]), theirs.permute(1, 2, 0))
    assert len(codes.unique()) > 4
    expected = codec.codec._decode_frame(theirs.transpose(0, 1))
    assert torch.allclose(codec.decode(codes), expected, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"num_codebooks": 3}, {"num_codebooks": 1, "codebook_size": 4}], ids=str
)
def test_facts_equal_behaviour(options):
    codec = alive(**options)
    facts, items = codec.config.facts(), sounds(codec)
    codes = codec.encode(items)
    assert codes.shape == (3, facts.tokens)
    assert facts.grid == (8, codec.config.num_codebooks)
    assert 0 <= codes.min() <= codes.max() < facts.codebook_size
    assert codec.codebook().shape == (facts.codebook_size, facts.width)
    assert codec.decode(codes).shape == items["samples"].shape
    assert torch.equal(codec.decode(codes % codec.config.codebook_size), codec.decode(codes))
    assert codec.encode(sounds(codec, 0)).shape == (0, facts.tokens)
    for row in range(3):
        alone = {"samples": items["samples"][row : row + 1]}
        assert torch.equal(codec.encode(alone)[0], codes[row])
        assert torch.allclose(codec.decode(codes[row : row + 1])[0], codec.decode(codes)[row], atol=1e-6)


def test_more_codebooks_come_closer():
    codec = alive(num_codebooks=3)
    frames = codec.codec.encoder(sounds(codec)["samples"])
    left = []
    for layer in codec.codec.quantizer.layers:
        frames = frames - layer.decode(layer.encode(frames))
        left.append(float(frames.detach().square().mean()))
    assert left[2] < left[0]


def test_bfloat16_and_the_meta_device():
    codec = alive().to(torch.bfloat16)
    decoded = codec.decode(codec.encode(sounds(codec)))
    assert decoded.dtype == torch.bfloat16
    assert decoded.isfinite().all()
    with torch.device("meta"):
        empty = made(ENCODEC, {})
    assert all(each.is_meta for each in empty.parameters())
    assert (len(empty.codec.quantizer.layers), empty.config.facts().tokens) == (32, 300)


@pytest.mark.parametrize("layout", ["new", "old"])
def test_weights_of_transformers_load(tmp_path, layout):
    published = alive(4)
    tensors = {name: each.clone() for name, each in published.codec.state_dict().items()}
    if layout == "old":
        ends = (
            (".parametrizations.weight.original0", ".weight_g"),
            (".parametrizations.weight.original1", ".weight_v"),
        )
        for new, old in ends:
            tensors = {name.replace(new, old): each for name, each in tensors.items()}
        assert any(name.endswith(".weight_g") for name in tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    codec = made(ENCODEC, TINY, 5)
    codec.load_weights(str(tmp_path))
    codes = codec.encode(sounds(codec))
    assert torch.equal(codes, published.encode(sounds(codec)))
    assert torch.equal(codec.decode(codes), published.decode(codes))
    save_file({"stray": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="missing"):
        codec.load_weights(str(tmp_path))


def test_sound_goes_in_and_comes_out(tmp_path):
    processor = pickle.loads(pickle.dumps(processor_of(ENCODEC, {**TINY, "too_long": "cut"})))
    sound = np.sin(np.arange(20) / 3).astype(np.float32) / 2
    samples = processor(sound)["samples"]
    assert samples.shape == processor.dummy()["samples"].shape == (1, 32)
    assert np.array_equal(samples[0, :20], sound)
    assert not samples[0, 20:].any()
    assert processor(np.zeros(100, np.float32))["samples"].shape == (1, 32)
    restored = processor.restore(samples * 3)
    assert restored.max() == 1.0
    processor.write(restored, str(tmp_path / "a.wav"), {"prompt": "ein höherer Ton", "seed": "3"})
    with soundfile.SoundFile(tmp_path / "a.wav") as file:
        assert (file.samplerate, len(file)) == (3200, 32)
        assert json.loads(file.comment) == {"prompt": "ein höherer Ton", "seed": "3"}
        assert np.allclose(file.read(dtype="float32"), restored, atol=1e-4)
    assert processor(tmp_path / "a.wav")["samples"].shape == (1, 32)
    for wrong in (object(), b"RIFFxx", np.zeros(0, np.float32)):
        with pytest.raises(BadSample):
            processor(wrong)
    with pytest.raises(ValueError, match="not finite"):
        processor.restore(np.full((1, 4), np.nan))


def test_longer_sound_is_refused_unless_cut():
    with pytest.raises(BadSample, match="Set too_long: cut"):
        processor_of(ENCODEC, TINY)(np.zeros(100, np.float32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_codebooks": 4}, "num_codebooks 4 is more than codebooks 3"),
        ({"codebook_size": 6}, "no power of 2"),
        ({"seconds": 0.001}, "at least 8 are needed"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EncodecConfig(**{**TINY, **options})
