"""Prepare brain signals: channels by name, filtered, resampled, scaled, cut into windows."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from janus_plugins.core.errors import BadSample
from janus_plugins.encoders.eeg.reading import Wanted, read_signal

if TYPE_CHECKING:
    from janus_plugins.encoders.eeg.spec import EegConfig


class EegProcessor:
    """Turn a recording into {"signal": [windows, channels, samples] float32}."""

    def __init__(self, config: EegConfig) -> None:
        self.config = config

    def __call__(self, value: object) -> dict[str, np.ndarray]:
        """Return the windows of a file, bytes or an array, or raise `BadSample`; see `read_signal`.

        What is left after the last whole window is dropped.
        """
        config = self.config
        wanted = Wanted(
            channels=config.channels,
            rate=float(config.rate),
            seconds=config.max_windows * config.window / config.rate,
            cut=config.too_long == "cut",
            zero=config.missing == "zero",
        )
        signal, rate = read_signal(value, wanted)
        if not signal.shape[1]:
            raise BadSample(f"a recording without samples; one window is {config.window} at {config.rate} Hz")
        if not np.isfinite(signal).all():
            raise BadSample("a recording with samples that are no finite numbers")
        signal = self._resampled(self._filtered(signal, rate), rate)
        windows = min(signal.shape[1] // config.window, config.max_windows)
        if windows < 1:
            raise BadSample(
                f"a recording of {signal.shape[1]} samples at {config.rate} Hz; one window is {config.window}"
            )
        cut = signal[:, : windows * config.window].reshape(len(signal), windows, config.window)
        return {"signal": np.ascontiguousarray(cut.transpose(1, 0, 2) / config.scale, np.float32)}

    def _filtered(self, signal: np.ndarray, rate: float) -> np.ndarray:
        """Return the signal within the band, without the hum; forwards and backwards, so nothing shifts."""
        from scipy.signal import sosfiltfilt

        band = self.config.band
        if band is not None and band[0] >= rate / 2:
            raise BadSample(
                f"a recording of {rate:g} samples a second holds nothing above {rate / 2:g} Hz, but band "
                f"begins at {band[0]:g} Hz; lower band, or leave such recordings out"
            )
        for sections in _filters(self.config.notch, band, rate):
            padding = min(3 * (2 * len(sections) + 1), signal.shape[1] - 1)
            signal = sosfiltfilt(sections, signal, axis=1, padlen=max(padding, 0))
        return signal

    def _resampled(self, signal: np.ndarray, rate: float) -> np.ndarray:
        if rate == self.config.rate:
            return signal
        from scipy.signal import resample_poly

        ratio = Fraction(self.config.rate / rate).limit_denominator(10_000)
        # About the line from end to end: an electrode's offset is no step at both ends.
        made: np.ndarray = resample_poly(signal, ratio.numerator, ratio.denominator, axis=1, padtype="line")
        return made

    def num_tokens(self, arrays: Mapping[str, np.ndarray]) -> int:
        """Answer how many features the encoder makes of a recording."""
        return len(arrays["signal"]) * self.config.per_window

    def dummy(self) -> dict[str, np.ndarray]:
        """Return one window of silence."""
        return {"signal": np.zeros((1, len(self.config.channels), self.config.window), np.float32)}

    def examples(self) -> list[object]:
        """Return made rhythms of different lengths, for tests."""
        config, draw = self.config, np.random.default_rng(8)
        items: list[object] = []
        for windows, pitch in ((config.max_windows, 10.0), (max(1, config.max_windows // 2), 6.0), (1, 3.0)):
            times = np.arange(windows * config.window) / config.rate
            rhythm = 40 * np.sin(2 * np.pi * pitch * times)
            items.append(rhythm + 10 * draw.normal(size=(len(config.channels), len(times))))
        return items


@lru_cache(maxsize=64)
def _filters(notch: float | None, band: tuple[float, float] | None, rate: float) -> tuple[np.ndarray, ...]:
    """Design the filters of a sampling rate, as second-order sections; this takes longer than filtering."""
    from scipy import signal as dsp

    filters = []
    if notch is not None and notch < rate / 2:
        filters.append(dsp.tf2sos(*dsp.iirnotch(notch, 30.0, rate)))
    if band is not None:
        low, high = band
        whole = high < rate / 2
        kind = "bandpass" if whole else "highpass"
        filters.append(dsp.butter(4, band if whole else low, kind, fs=rate, output="sos"))
    return tuple(filters)
