"""Sound from files and arrays: checked by its header first, then mono at the model's rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from janus_plugins.core.errors import BadSample
from janus_plugins.core.files import RawFile, as_array, is_array, raw_file
from janus_plugins.core.wav_chunks import without_notes

MAX_BYTES = 1_000_000_000
MAX_CHANNELS = 64
RATES = (1_000, 768_000)
"""Sample rates that are believed."""
FORMATS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3", "AIFF")
_PIECE = 2**20
"""Numbers that are decoded at a time."""
_WHAT = "a recording"


def read_sound(value: object, rate: int, seconds: float, cut: bool) -> np.ndarray:
    """Return samples [S] (float32, mono, about [-1, 1]) at `rate`.

    Args:
        value: a path, bytes, {"bytes", "path"} or {"array", "sampling_rate"} of datasets, or an array
            (or lists) [S] or [S, channels] at `rate`.
        rate: samples a second.
        seconds: longest sound.
        cut: whether longer sound loses its end, or is refused.

    Raises:
        BadSample: it cannot be read, is longer, or is not what its header says.
    """
    if isinstance(value, Mapping) and value.get("array") is not None:
        own, samples = value.get("sampling_rate"), _array(value["array"])
        return _ready(samples, _checked_rate(own, _WHAT), rate, seconds, cut, _WHAT)
    if is_array(value):
        return _ready(_array(value), rate, rate, seconds, cut, _WHAT)
    file = raw_file(value, _WHAT, MAX_BYTES)
    if file is None:
        raise BadSample(f"{_WHAT} must be a path, bytes or an array of samples, not {type(value).__name__}")
    try:
        samples, own = _decoded(file, seconds, cut)
    except BadSample:
        raise
    except Exception as error:  # decoders of foreign bytes raise nearly anything
        raise BadSample(f"{file.name}: cannot be read as sound ({type(error).__name__}: {error})") from error
    return _ready(samples, own, rate, seconds, cut, file.name)


def _decoded(file: RawFile, seconds: float, cut: bool) -> tuple[np.ndarray, int]:
    """Decode at most one sample more than fits, whatever the header claims."""
    with file.open() as opened, _sound_of(opened) as sound:
        if sound.format not in FORMATS:
            raise BadSample(f"{file.name}: format {sound.format}; {', '.join(FORMATS)} are read")
        own = _checked_rate(sound.samplerate, file.name)
        if not 1 <= sound.channels <= MAX_CHANNELS:
            raise BadSample(f"{file.name}: {sound.channels} channels; 1 to {MAX_CHANNELS} are read")
        most = _fitting(seconds, own)
        if not cut and sound.frames > most:
            raise _too_long(file.name, sound.frames / own, seconds)
        return _mono(sound, min(most + 1, sound.frames)), own


def _sound_of(opened: BinaryIO) -> Any:
    """Return a file as soundfile reads it; a .wav whose notes cannot be read, without them."""
    import soundfile

    try:
        return soundfile.SoundFile(opened)
    except soundfile.LibsndfileError:
        plain = without_notes(opened)
        if plain is None:
            raise
        return soundfile.SoundFile(plain)


def _fitting(seconds: float, rate: int) -> int:
    """Return how many samples fit, a begun one included: 0.58 s at 48 kHz are 27,840, not a trace less."""
    return math.ceil(round(seconds * rate, 6))


def _mono(sound: Any, most: int) -> np.ndarray:
    """Return at most so many samples [S], read in pieces: a header that lies takes no memory.

    How many a file can hold is not said by its size: a FLAC or Ogg of silence has thousands in a byte.
    """
    pieces = [np.zeros(0, np.float32)]
    while most > 0:
        piece = sound.read(min(most, _PIECE // sound.channels), dtype="float32", always_2d=True)
        if not len(piece):
            break
        pieces.append(piece.mean(axis=1))
        most -= len(piece)
    return np.concatenate(pieces)


def _array(value: Any) -> np.ndarray:
    samples = as_array(value, _WHAT)
    if samples.ndim not in (1, 2) or samples.dtype.kind not in "iuf":
        raise BadSample(f"samples must be numbers [S] or [S, channels], not {samples.dtype} {samples.shape}")
    if samples.ndim == 2 and samples.shape[1] > MAX_CHANNELS:
        raise BadSample(f"samples {samples.shape}: {samples.shape[1]} channels; 1 to {MAX_CHANNELS} are read")
    if samples.dtype.kind in "iu" and samples.dtype.itemsize == 8:
        raise BadSample(f"samples of {samples.dtype}, of no known range; give floats in [-1, 1], or int16")
    if samples.dtype.kind in "iu":
        # As libsndfile scales files; unsigned samples (a .wav of 8 bits) rest in the middle of their range.
        half = 2.0 ** (8 * samples.dtype.itemsize - 1)
        samples = samples / half if samples.dtype.kind == "i" else samples / half - 1
    return samples.astype(np.float32)


def _checked_rate(rate: object, name: str) -> int:
    if not isinstance(rate, (int, float, np.integer, np.floating)) or not RATES[0] <= rate <= RATES[1]:
        raise BadSample(f"{name}: {rate} samples a second; {RATES[0]:,} to {RATES[1]:,} are read")
    return int(rate)


def _ready(samples: np.ndarray, own: int, rate: int, seconds: float, cut: bool, name: str) -> np.ndarray:
    """Return mono samples at the wanted rate, of a checked length."""
    if samples.ndim == 2:
        samples = samples.mean(axis=1)
    most = _fitting(seconds, own)
    if len(samples) > most and not cut:
        raise _too_long(name, len(samples) / own, seconds)
    samples = samples[:most]
    if not np.isfinite(samples).all():
        raise BadSample(f"{name}: holds samples that are no finite numbers")
    if own != rate:
        from scipy.signal import resample_poly

        shared = math.gcd(own, rate)
        samples = resample_poly(samples, rate // shared, own // shared).astype(np.float32)
    return samples[: _fitting(seconds, rate)]


def _too_long(name: str, length: float, seconds: float) -> BadSample:
    return BadSample(
        f"{name}: {length:,.1f} s of sound; the encoder hears {seconds:g} s. Set too_long: cut, or split it"
    )
