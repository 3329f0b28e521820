"""Audio: spectrograms as published, files read safely, published weights."""

import io
import struct

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.io import wavfile
from transformers import ASTFeatureExtractor, ASTForAudioClassification, WhisperFeatureExtractor, WhisperModel

from janus_plugins.core.errors import BadSample
from janus_plugins.core.sound import read_sound
from janus_plugins.encoders.audio.processor import AudioProcessor
from janus_plugins.encoders.audio.spec import AUDIO, SIZES, AudioConfig
from janus_plugins.sequence.assemble import collate_items
from tests.components.keeps import made

TINY = AudioConfig.tiny()
PUBLISHED_AST = "audio_spectrogram_transformer"
AST_TINY = {**TINY, "name": "ast-base", "mel_bins": 36, "seconds": 0.6}


def sound(seconds=0.5, pitch=440, rate=16000):
    draw = np.random.default_rng(3)
    times = np.arange(round(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * pitch * times) + 0.01 * draw.normal(size=len(times))).astype(np.float32)


def whole(config, arrays):
    """The full-length spectrogram, as the encoder pads it."""
    silence = np.full((config.frames - len(arrays["mel"]), arrays["mel"].shape[1]), arrays["floor"])
    return np.concatenate([arrays["mel"], silence])


@pytest.mark.parametrize("seconds", [0.1, 0.5, 1.0])
def test_whisper_hears_what_transformers_computes(seconds):
    config = AudioConfig(**TINY)
    arrays = AudioProcessor(config)(sound(seconds))
    theirs = WhisperFeatureExtractor(chunk_length=1)(sound(seconds), sampling_rate=16000, return_tensors="np")
    assert np.allclose(whole(config, arrays), theirs["input_features"][0].T, atol=1e-4)
    assert len(arrays["mel"]) == min(round(seconds * 100) + 2, 100)


@pytest.mark.parametrize("seconds", [0.1, 0.5])
def test_ast_hears_what_transformers_computes(seconds):
    config = AudioConfig(**AST_TINY)
    arrays = AudioProcessor(config)(sound(seconds))
    extractor = ASTFeatureExtractor(num_mel_bins=36, max_length=60)
    theirs = extractor(sound(seconds), sampling_rate=16000, return_tensors="np")["input_values"][0]
    assert np.allclose(whole(config, arrays), theirs, atol=1e-4)


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes_build(name):
    config = AudioConfig(name=name)
    with torch.device("meta"):
        encoder = made(AUDIO, {"name": name})
        mel = torch.zeros(1, config.frames, config.sizes.mel_bins)
        features = encoder({"mel": mel, "floor": torch.zeros(1, 1)})
    facts = config.facts()
    assert features.shape == (1, facts.max_tokens, facts.width)
    assert facts.max_tokens == {"whisper": 1500, "ast": 1212}[config.family]


def test_whisper_weights_of_the_whole_model_load(tmp_path):
    encoder = made(AUDIO, TINY)
    sizes = encoder.trunk.config.to_dict() | {
        "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 8, "vocab_size": 9,
        "max_target_positions": 4, "pad_token_id": 0, "max_source_positions": 60,
    }  # fmt: skip
    torch.manual_seed(4)
    published = WhisperModel(type(encoder.trunk.config)(**sizes)).eval()
    tensors = {f"model.{name}": each.clone() for name, each in published.state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors")
    encoder.load_weights(str(tmp_path))
    assert torch.equal(encoder.trunk.conv1.weight, published.encoder.conv1.weight)
    same = made(AUDIO, {**TINY, "seconds": 1.2})
    same.load_weights(str(tmp_path))
    arrays = AudioProcessor(AudioConfig(**{**TINY, "seconds": 1.2}))(sound(1.2))
    mel = torch.from_numpy(arrays["mel"])[None]
    expected = published.encoder(mel.transpose(1, 2)).last_hidden_state
    assert torch.allclose(same(collate_items([arrays])), expected, atol=1e-5)


def test_ast_weights_of_a_classifier_load_and_features_run_in_time(tmp_path):
    encoder = made(AUDIO, AST_TINY)
    torch.manual_seed(4)
    published = ASTForAudioClassification(encoder.trunk.config).eval()
    for parameter in published.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    published.save_pretrained(tmp_path)  # under the names of published files
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert f"{PUBLISHED_AST}.encoder.layer.0.attention.attention.query.weight" in file.keys()  # noqa: SIM118
    encoder.load_weights(str(tmp_path))
    config = AudioConfig(**AST_TINY)
    arrays = AudioProcessor(config)(sound(0.6))
    mel = torch.from_numpy(whole(config, arrays))[None]
    theirs = published.audio_spectrogram_transformer(mel).last_hidden_state[0, 2:].reshape(3, 5, 16)
    mine = encoder(collate_items([arrays]))[0]
    for step, band in ((0, 0), (1, 2), (4, 1)):
        assert torch.allclose(mine[step * 3 + band], theirs[band, step], atol=1e-5)


def wav(samples, rate=16000, form="WAV"):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form)
    return file.getvalue()


@pytest.mark.parametrize("form", ["WAV", "FLAC"])
def test_files_bytes_and_rows_of_datasets_are_read_alike(tmp_path, form):
    processor = AudioProcessor(AudioConfig(**TINY))
    (tmp_path / "a.bin").write_bytes(wav(sound(), form=form))
    first = processor(tmp_path / "a.bin")
    for value in (
        str(tmp_path / "a.bin"),
        {"bytes": wav(sound(), form=form), "path": "a.wav"},
        wav(np.stack([sound(), sound()], axis=1), form=form),
        sound(),
        {"array": sound(), "sampling_rate": 16000},
        (sound() * 32767).astype(np.int16),
    ):
        assert np.allclose(processor(value)["mel"], first["mel"], atol=0.05)


def test_other_rates_are_resampled():
    processor = AudioProcessor(AudioConfig(**TINY))
    low, high = (processor(wav(sound(0.8, rate=rate), rate))["mel"] for rate in (16000, 44100))
    assert low.shape == high.shape
    assert abs(int(low.mean(0).argmax()) - int(high.mean(0).argmax())) <= 1


def test_rates_and_samples_of_numpys_kinds_are_read():
    plain = read_sound({"array": sound(), "sampling_rate": 16_000}, 16_000, 1.0, cut=False)
    for rate in (np.int64(16_000), np.float32(16_000)):
        assert np.array_equal(
            read_sound({"array": sound(), "sampling_rate": rate}, 16_000, 1.0, False), plain
        )
    eight_bits = np.round(sound() * 127 + 128).astype(np.uint8)
    assert np.allclose(read_sound(eight_bits, 16_000, 1.0, False), plain, atol=0.01)


def test_longer_sound_is_refused_or_cut():
    with pytest.raises(BadSample, match=r"1.5 s of sound; the encoder hears 1 s. Set too_long: cut"):
        AudioProcessor(AudioConfig(**TINY))(wav(sound(1.5)))
    cut = AudioProcessor(AudioConfig(**TINY, too_long="cut"))
    assert len(cut(wav(sound(1.5)))["mel"]) == len(cut(sound(1.5))["mel"]) == 100


@pytest.mark.parametrize(("seconds", "rate"), [(0.58, 48_000), (1.14, 24_000), (16.28, 16_000)])
def test_sound_of_just_the_longest_length_is_heard_and_more_is_cut(seconds, rate):
    """In floats each product of the two lies a trace beside the whole number of samples."""
    config = AudioConfig(**{**TINY, "seconds": seconds})
    exact = sound(seconds, rate=rate)
    assert len(AudioProcessor(config)(wav(exact, rate))["mel"]) == config.frames
    longer = wav(np.concatenate([exact, exact]), rate)
    with pytest.raises(BadSample, match="s of sound"):
        AudioProcessor(config)(longer)
    cut = AudioConfig(**{**TINY, "seconds": seconds}, too_long="cut")
    assert len(AudioProcessor(cut)(longer)["mel"]) == config.frames


def lying(frames=2**31 - 100):
    """A header that promises two gigabytes of samples, over 100 bytes."""
    data = bytearray(wav(sound(0.1))[:144])
    struct.pack_into("<I", data, 4, frames)
    struct.pack_into("<I", data, 40, frames)
    return bytes(data)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"RIFF" + b"\0" * 60, "cannot be read as sound"),
        (b"", "0 bytes"),
        ("/nowhere/a.wav", "no such file"),
        (np.full(9000, np.nan, np.float32), "no finite numbers"),
        (np.zeros(10, np.float32), "at least 400"),
        (np.zeros((500, 500), np.float32), "500 channels"),
        (np.zeros((2, 2, 2), np.float32), "must be numbers"),
        ({"array": sound(), "sampling_rate": 3}, "3 samples a second"),
        ({"array": sound()}, "None samples a second"),
        (wav(sound(0.2))[:100], "at least 400"),
        (lying(), "at least 400|cannot be read|s of sound"),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_a_bad_sample(value, message):
    with pytest.raises(BadSample, match=message):
        AudioProcessor(AudioConfig(**TINY))(value)


@pytest.mark.parametrize(("form", "subtype"), [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("WAV", "PCM_16")])
def test_silence_that_packs_well_loses_nothing_behind_it(form, subtype):
    samples = np.zeros((48_000 * 20, 2), np.float32)
    samples[-24_000:] = 0.5 * np.sin(np.arange(24_000) * 0.05)[:, None]
    file = io.BytesIO()
    soundfile.write(file, samples, 48_000, format=form, subtype=subtype)
    heard = read_sound(file.getvalue(), 16_000, 20.0, cut=True)
    assert len(heard) == 16_000 * 20
    assert np.abs(heard[-7_000:]).max() > 0.4
    assert np.abs(heard[:-10_000]).max() < 0.01


def chunk(name, body):
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


NOTES = {
    "many tags": chunk(
        b"LIST", b"INFO" + b"".join(chunk(b"I%03d" % each, b"a" * 100) for each in range(700))
    ),
    "many labels": chunk(b"LIST", b"adtl" + chunk(b"labl", b"\1\0\0\0here") * 5000),
    "an unknown list": chunk(b"LIST", b"exif" + b"a" * 2047),
    "a list of no tags": chunk(b"LIST", b"INFO" + b"\xff" * 2049),
    "loops": chunk(b"smpl", b"\0" * 70001),
    "a broadcast's": chunk(b"bext", b"\0" * 602 + b"a" * 70000),
    "a player's": chunk(b"id3 ", b"ID3\3\0\0" + b"a" * 70000),
}


@pytest.mark.parametrize("notes", NOTES)
@pytest.mark.parametrize(("form", "subtype"), [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAVEX", "PCM_24")])
def test_notes_before_the_samples_change_nothing(notes, form, subtype, tmp_path):
    file = io.BytesIO()
    soundfile.write(file, np.stack([sound(), -0.5 * sound()], axis=1), 16000, format=form, subtype=subtype)
    plain = file.getvalue()
    at = plain.index(b"data")
    data = plain[:at] + NOTES[notes] + plain[at:]
    data = data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
    (tmp_path / "a.wav").write_bytes(data)
    for value in (data, str(tmp_path / "a.wav")):
        assert np.array_equal(read_sound(value, 16000, 1, False), read_sound(plain, 16000, 1, False))
    with pytest.raises(BadSample, match=r"0\.5 s of sound; the encoder hears 0\.25 s"):
        read_sound(data, 16000, 0.25, False)
    assert np.array_equal(read_sound(data, 16000, 0.25, True), read_sound(plain, 16000, 0.25, True))


def test_a_lying_header_takes_no_memory():
    import tracemalloc

    tracemalloc.start()
    with pytest.raises(BadSample):
        AudioProcessor(AudioConfig(**{**TINY, "seconds": 600.0}, too_long="cut"))(lying())
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


@pytest.mark.parametrize(("subtype", "kept"), [("PCM_U8", "uint8"), ("PCM_16", "int16"), ("PCM_32", "int32")])
def test_whole_numbers_read_as_the_file_that_holds_them(subtype, kept):
    stream = io.BytesIO()
    soundfile.write(stream, np.append(sound(), [0, 1, -1]), 16000, format="WAV", subtype=subtype)
    _, samples = wavfile.read(io.BytesIO(stream.getvalue()))
    assert samples.dtype == kept
    heard = read_sound(stream.getvalue(), 16000, 1.0, cut=False)
    assert np.allclose(read_sound(samples, 16000, 1.0, cut=False), heard, atol=1e-7)


def test_lists_are_read_as_arrays():
    plain = read_sound(sound(), 16_000, 1.0, cut=False)
    for value in (sound().tolist(), {"array": sound().tolist(), "sampling_rate": 16_000}):
        assert np.array_equal(read_sound(value, 16_000, 1.0, cut=False), plain)
    with pytest.raises(BadSample, match="a recording that is no array of numbers"):
        read_sound(torch.tensor(sound(), requires_grad=True), 16_000, 1.0, cut=False)


@pytest.mark.parametrize(
    "value", [np.arange(-500, 500), {"array": [0, 1000, -1000], "sampling_rate": 16_000}]
)
def test_whole_numbers_of_no_known_range_are_not_silence(value):
    with pytest.raises(BadSample, match="samples of int64, of no known range; give floats in"):
        read_sound(value, 16_000, 1.0, cut=False)
