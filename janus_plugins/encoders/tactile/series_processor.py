"""Prepare readings over time: checked, less what the sensor reads at rest, scaled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from janus_plugins.core.errors import BadSample
from janus_plugins.core.files import RawFile, as_array, is_array, raw_file, read_npy

if TYPE_CHECKING:
    from janus_plugins.encoders.tactile.series_spec import TactileSeriesConfig

MAX_BYTES = 100_000_000
_WHAT = "a series of readings"


class TactileSeriesProcessor:
    """Turn an array [times, channels], a .npy or a .csv into {"readings": [times, channels] float32}."""

    def __init__(self, config: TactileSeriesConfig) -> None:
        self.config = config

    def __call__(self, value: object) -> dict[str, np.ndarray]:
        """Return the readings, or raise `BadSample`."""
        config = self.config
        readings, name = self._read(value)
        if readings.ndim == 1:
            readings = readings[:, None]
        if readings.ndim != 2 or readings.shape[1] != config.channels or readings.dtype.kind not in "iuf":
            raise BadSample(
                f"{name}: {readings.dtype} {readings.shape}; numbers [times, {config.channels}] are read"
            )
        if not len(readings) or (len(readings) > config.max_steps and config.too_long == "refuse"):
            raise BadSample(
                f"{name}: {len(readings):,} times; 1 to {config.max_steps:,} are read (too_long: cut cuts)"
            )
        readings = readings[: config.max_steps].astype(np.float64)
        if not np.isfinite(readings).all():
            raise BadSample(f"{name}: holds readings that are no finite numbers")
        if config.rest:
            readings = readings - readings[: config.rest].mean(axis=0)
        return {"readings": (readings / config.scale).astype(np.float32)}

    def _read(self, value: object) -> tuple[np.ndarray, str]:
        if is_array(value):
            return as_array(value, _WHAT), _WHAT
        file = raw_file(value, _WHAT, MAX_BYTES)
        if file is None:
            raise BadSample(f"{_WHAT} must be an array, a path or bytes, not {type(value).__name__}")
        if file.head(6) == b"\x93NUMPY":
            return read_npy(file, MAX_BYTES // 8), file.name
        return _table(file, self.config.max_steps), file.name

    def num_tokens(self, arrays: Mapping[str, np.ndarray]) -> int:
        """Answer how many features the encoder makes of a series."""
        return self.config.num_features(len(arrays["readings"]))

    def dummy(self) -> dict[str, np.ndarray]:
        """Return one patch of rest."""
        steps = min(self.config.patch, self.config.max_steps)
        return {"readings": np.zeros((steps, self.config.channels), np.float32)}

    def examples(self) -> list[object]:
        """Return made presses of different lengths, for tests."""
        draw = np.random.default_rng(6)
        most = self.config.max_steps
        lengths = [max(1, round(most * share)) for share in (1.0, 0.55, 0.3)]
        return [
            np.sin(np.linspace(0, 3, length))[:, None] * draw.normal(size=self.config.channels)
            for length in lengths
        ]


def _table(file: RawFile, most: int) -> np.ndarray:
    """Return the numbers of a text table, one time a line; a line of titles is skipped, and empty ones."""
    try:
        text = file.head(MAX_BYTES).decode("utf-8-sig").replace(",", " ").replace(";", " ")
        lines = [line for line in text.splitlines() if line.partition("#")[0].strip()]
        if lines and not all(map(_number, lines[0].partition("#")[0].split())):
            lines = lines[1:]
        if not lines:
            raise ValueError("it is empty")
        return np.loadtxt(lines[: most + 1], dtype=np.float64, ndmin=2)
    except ValueError as error:
        raise BadSample(f"{file.name}: cannot be read as a table of numbers ({error})") from error


def _number(cell: str) -> bool:
    """Answer whether a cell is a number, or stands for one that is missing: NaN is no title."""
    try:
        float(cell)
    except ValueError:
        return False
    return True
