"""Prepare points: a fixed number of them, around the origin, within the unit sphere."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from janus_plugins.core.errors import BadSample
from janus_plugins.encoders.point_cloud.reading import read_points

if TYPE_CHECKING:
    from janus_plugins.encoders.point_cloud.spec import PointCloudConfig

_SLACK = 1e-3
"""How far colours may lie outside of [0, 1], by rounding."""
_ROUNDED = 1e-12
"""Share of a place that its mean may differ by, by rounding."""


class PointCloudProcessor:
    """Turn a file, bytes or an array of points into {"points": [P, 3 or 6] float32}."""

    def __init__(self, config: PointCloudConfig) -> None:
        self.config = config

    def __call__(self, value: object) -> dict[str, np.ndarray]:
        """Return the points, or raise `BadSample`; see `read_points`.

        Which points of a larger cloud are kept depends on its content alone. A smaller one repeats its
        points as evenly as can be, in an order of their own: how they were listed has no say.
        """
        wanted = self.config.num_points
        points = self._coloured(read_points(value, wanted))
        if len(points) > wanted:
            draw = np.random.default_rng(zlib.crc32(np.ascontiguousarray(points, np.float32).tobytes()))
            points = points[draw.choice(len(points), wanted, replace=False)]
        else:
            points = points[np.lexsort(points.T[::-1])]
        points = np.concatenate([unit(points[:, :3]), points[:, 3:].astype(np.float32)], axis=1)
        return {"points": points[np.arange(wanted) * len(points) // wanted]}

    def _coloured(self, points: np.ndarray) -> np.ndarray:
        """Return points with as many channels as the encoder reads."""
        config = self.config
        if config.channels == 3:
            return points[:, :3]
        if points.shape[1] == 6:
            least, most = points[:, 3:].min(), points[:, 3:].max()
            if least < -_SLACK or most > 1 + _SLACK:
                raise BadSample(
                    f"colours from {least:g} to {most:g}; red, green and blue lie in [0, 1]: divide them, or "
                    "leave out what is no colour"
                )
            return points
        if config.missing_colour is None:
            raise BadSample("points without colours for an encoder of 6 channels; set missing_colour, or 3")
        grey = np.full((len(points), 3), config.missing_colour, np.float32)
        return np.concatenate([points, grey], axis=1)

    def num_tokens(self, arrays: Mapping[str, np.ndarray]) -> int:
        """Answer the number of neighbourhoods."""
        return self.config.groups

    def dummy(self) -> dict[str, np.ndarray]:
        """Return all points at the origin."""
        return {"points": np.zeros((self.config.num_points, self.config.channels), np.float32)}

    def examples(self) -> list[object]:
        """Return made clouds of different sizes, for tests."""
        draw = np.random.default_rng(4)
        sizes = (self.config.num_points // 2 + 1, self.config.num_points, self.config.num_points * 2)
        clouds = [draw.normal(size=(size, 6)) * (1, 2, 0.5, 1, 1, 1) for size in sizes]
        for cloud in clouds:
            cloud[:, 3:] = np.clip(np.abs(cloud[:, 3:]), 0, 1)
        return [cloud.astype(np.float32) for cloud in clouds]


def unit(places: np.ndarray) -> np.ndarray:
    """Return places [P, 3] moved and scaled into the unit sphere. Source: Point-BERT, `pc_norm`."""
    centred = places.astype(np.float64) - places.mean(axis=0, dtype=np.float64)
    longest = np.linalg.norm(centred, axis=1).max()
    if longest < _ROUNDED * np.abs(places).max():  # one place, many times
        return np.zeros_like(centred, np.float32)
    scaled: np.ndarray = (centred / (longest or 1.0)).astype(np.float32)
    return scaled
