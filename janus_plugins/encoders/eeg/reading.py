"""Brain signals from files (MNE, .npy) and arrays, by channel name, in microvolts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from janus_plugins.core.errors import BadSample
from janus_plugins.core.files import RawFile, as_array, is_array, raw_file, read_npy
from janus_plugins.encoders.eeg.electrodes import chosen
from janus_plugins.encoders.eeg.units import factors

MAX_BYTES = 4_000_000_000
MAX_CHANNELS = 1024
RATES = (1.0, 100_000.0)
SUFFIXES = (".edf", ".bdf", ".gdf", ".fif", ".npy")
_WHAT = "a recording of brain signals"
_MICRO = 1e6


@dataclass(frozen=True)
class Wanted:
    """Say what is read of a recording.

    Attributes:
        channels: electrodes by name, in the order that they are given back.
        rate: samples a second of a bare array.
        seconds: longest recording.
        cut: whether a longer one loses its end, or is refused.
        zero: whether a missing channel reads zero, or is refused.
    """

    channels: tuple[str, ...]
    rate: float
    seconds: float
    cut: bool
    zero: bool


def read_signal(value: object, wanted: Wanted) -> tuple[np.ndarray, float]:
    """Return microvolts [channels, samples] (float64) and their samples a second.

    Args:
        value: a path or bytes of .edf, .bdf, .gdf, .fif or .npy; {"array" [C, S] in microvolts,
            "sampling_rate", "channels": names}; an array, or lists. An array, and what a .npy file holds, is
            [C, S] in microvolts: the wanted channels in their order, at the wanted rate.
        wanted: what to read.

    Raises:
        BadSample: it cannot be read, lacks a channel, or is too long.
    """
    if isinstance(value, Mapping) and value.get("array") is not None:
        names = value.get("channels")
        names = list(wanted.channels if names is None else map(str, names))
        return _from_array(value["array"], names, value.get("sampling_rate"), wanted, _WHAT)
    if is_array(value):
        return _from_array(value, list(wanted.channels), wanted.rate, wanted, _WHAT)
    file = raw_file(value, _WHAT, MAX_BYTES)
    if file is None:
        raise BadSample(f"{_WHAT} must be a path, bytes or an array, not {type(value).__name__}")
    suffix = _suffix(file)
    if suffix == ".npy":
        signal = read_npy(file, MAX_BYTES // 8)
        return _from_array(signal, list(wanted.channels), wanted.rate, wanted, file.name)
    try:
        with file.as_path(suffix) as path, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what MNE says of names and headers is no defect of a sample
            return _from_mne(str(path), file, suffix, wanted)
    except BadSample:
        raise
    except Exception as error:  # decoders of foreign bytes raise nearly anything
        raise BadSample(f"{file.name}: cannot be read ({type(error).__name__}: {error})") from error


def _from_array(
    array: Any, names: list[str], rate: object, wanted: Wanted, what: str
) -> tuple[np.ndarray, float]:
    signal = as_array(array, what)
    if signal.ndim != 2 or signal.dtype.kind not in "iuf" or len(signal) != len(names):
        raise BadSample(f"{what}: {signal.dtype} {signal.shape} for {len(names)} channels; numbers [C, S]")
    own = _checked_rate(rate, what)
    samples = _checked_length(signal.shape[1], own, wanted, what)
    places = _places(names, wanted, what)
    return _laid_out([None if each is None else signal[each, :samples] for each in places], samples), own


def _from_mne(path: str, file: RawFile, suffix: str, wanted: Wanted) -> tuple[np.ndarray, float]:
    import mne

    name = file.name
    raw = mne.io.read_raw(path, preload=False, verbose="error")
    own = _checked_rate(float(raw.info["sfreq"]), name)
    if len(raw.ch_names) > MAX_CHANNELS:
        raise BadSample(f"{name}: {len(raw.ch_names):,} channels; up to {MAX_CHANNELS:,} are read")
    samples = _checked_length(int(raw.n_times), own, wanted, name)
    places = _places(raw.ch_names, wanted, name)
    picks = [each for each in places if each is not None]
    read = raw.get_data(picks=picks, start=0, stop=samples, verbose="error") * _MICRO
    if suffix in (".edf", ".bdf", ".gdf"):
        read *= np.array(factors(file, raw.ch_names, picks))[:, None]
    rows = dict(zip(picks, read, strict=True))
    return _laid_out([None if each is None else rows[each] for each in places], samples), own


def _laid_out(rows: list[np.ndarray | None], samples: int) -> np.ndarray:
    signal = np.zeros((len(rows), samples))
    for place, row in enumerate(rows):
        if row is not None:
            signal[place] = row
    return signal


def _places(names: list[str], wanted: Wanted, name: str) -> list[int | None]:
    places = chosen(wanted.channels, names)
    absent = [channel for channel, place in zip(wanted.channels, places, strict=True) if place is None]
    if len(absent) == len(places) or (absent and not wanted.zero):
        raise BadSample(
            f"{name}: has no channel {', '.join(absent[:5])}, but {', '.join(names[:8])}; "
            "change channels, or set missing: zero"
        )
    return places


def _checked_rate(rate: object, name: str) -> float:
    if not isinstance(rate, (int, float, np.integer, np.floating)) or not RATES[0] <= rate <= RATES[1]:
        raise BadSample(f"{name}: {rate} samples a second; {RATES[0]:g} to {RATES[1]:,.0f} are read")
    return float(rate)


def _checked_length(samples: int, rate: float, wanted: Wanted, name: str) -> int:
    """Return how many samples are read."""
    most = math.ceil(wanted.seconds * rate)
    if samples > most and not wanted.cut:
        raise BadSample(
            f"{name}: {samples / rate:,.1f} s; the encoder reads {wanted.seconds:g} s. Set too_long: cut, "
            "raise max_windows, or split it"
        )
    return min(samples, most)


def _suffix(file: RawFile) -> str:
    """Return the format: by how the file begins, else by its name. A header of EDF is looked at first."""
    head = file.head(256)
    suffix = file.suffix
    marks = {b"0       ": ".edf", b"\xffBIOSEMI": ".bdf", b"GDF ": ".gdf", b"\x93NUMPY": ".npy"}
    for mark, known in marks.items():
        if head.startswith(mark):
            suffix = known
    if suffix not in SUFFIXES:
        raise BadSample(f"{file.name}: is of no known format; {', '.join(SUFFIXES)} are read")
    if suffix in (".edf", ".bdf"):
        stated = head[252:256].decode("ascii", errors="replace").strip()
        channels = int(stated) if stated.isdigit() else 0
        if not 1 <= channels <= MAX_CHANNELS or 256 * (channels + 1) > file.size:
            raise BadSample(f"{file.name}: claims {stated or 'no'} channels in {file.size:,} bytes")
    return suffix
