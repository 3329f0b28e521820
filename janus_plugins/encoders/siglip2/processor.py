"""Prepare pictures for SigLIP 2: in their own shape, cut into patches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from janus_plugins.core.media import open_image, to_array

if TYPE_CHECKING:
    from janus_plugins.encoders.siglip2.spec import Siglip2Config


class Siglip2Processor:
    """Turn a picture into {"patches": [T, 3 * P * P] float32, "shape": [2] int64 (rows, columns)}."""

    def __init__(self, config: Siglip2Config) -> None:
        self.config = config

    def __call__(self, value: object) -> dict[str, np.ndarray]:
        """Return the patches of a picture, row-major, or raise `BadSample`; see `open_image`."""
        from PIL import Image

        image, patch = open_image(value, rotate=self.config.rotate), self.config.patch_size
        rows, columns = shape(image.height, image.width, patch, self.config.max_patches)
        image = image.resize((columns * patch, rows * patch), Image.Resampling.BILINEAR)
        pixels = to_array(image).reshape(3, rows, patch, columns, patch)
        patches = pixels.transpose(1, 3, 2, 4, 0).reshape(rows * columns, 3 * patch * patch)
        return {"patches": np.ascontiguousarray(patches), "shape": np.array([rows, columns])}

    def num_tokens(self, arrays: Mapping[str, np.ndarray]) -> int:
        """Answer how many features the encoder makes of a picture."""
        return len(arrays["patches"])

    def dummy(self) -> dict[str, np.ndarray]:
        """Return one grey patch."""
        return {
            "patches": np.zeros((1, 3 * self.config.patch_size**2), np.float32),
            "shape": np.array([1, 1]),
        }


def shape(height: int, width: int, patch: int, most: int) -> tuple[int, int]:
    """Return the (rows, columns) of patches that keep a picture's shape best, at most `most` together.

    The largest scale is searched for at which the picture, both sides rounded up to whole patches, has
    room. Source: SigLIP 2 (2502.14786), section 2.4; transformers' `get_image_size_for_max_num_patches`.

    Args:
        height: of the picture in pixels.
        width: of the picture in pixels.
        patch: side of a patch in pixels.
        most: most patches.
    """

    def at(scale: float) -> tuple[int, int]:
        return max(1, math.ceil(height * scale / patch)), max(1, math.ceil(width * scale / patch))

    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        rows, columns = at(middle)
        low, high = (middle, high) if rows * columns <= most else (low, middle)
    rows, columns = at(low)
    # A strip so narrow that even one row has too many patches loses shape rather than room.
    return (
        (rows, columns) if rows * columns <= most else (min(rows, most), 1) if rows > columns else (1, most)
    )
