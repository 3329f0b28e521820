"""Prepare touch pictures: fitted, and set against the picture of the untouched gel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from janus_plugins.core.errors import BadSample, RunFileError
from janus_plugins.core.media import fit_crop, fit_pad, open_image

if TYPE_CHECKING:
    from janus_plugins.encoders.tactile.image_spec import TactileConfig


class TactileProcessor:
    """Turn {"image", "background"}, a pair of pictures, or one picture, into {"pixels": [C, S, S]}."""

    def __init__(self, config: TactileConfig) -> None:
        self.config = config
        self._tokens = config.facts().max_tokens
        self._gel: np.ndarray | None = None
        if config.background_file is not None:
            try:
                self._gel = self._fitted(config.background_file)
            except BadSample as error:
                raise RunFileError(f"background_file: {error}") from error

    def __call__(self, value: object) -> dict[str, np.ndarray]:
        """Return the pixels of a touch, in about [-1, 1].

        Raises:
            BadSample: a picture cannot be used, or the background is missing.
        """
        picture, gel = _parted(value)
        touched = self._fitted(picture)
        if self.config.background == "none":
            return {"pixels": touched * 2 - 1}
        untouched = self._gel if gel is None else self._fitted(gel)
        if untouched is None:
            raise BadSample(
                "a touch without the picture of the untouched gel: give items as {'image': ..., "
                "'background': ...}, or set background_file, or background: none"
            )
        if self.config.background == "stack":
            return {"pixels": np.concatenate([touched, untouched]) * 2 - 1}
        return {"pixels": (touched - untouched) * np.float32(self.config.gain)}

    def _fitted(self, value: object) -> np.ndarray:
        """Return a picture in [0, 1] as [3, S, S] float32."""
        image, size = open_image(value), self.config.image_size
        square = fit_crop(image, size) if self.config.fit == "crop" else fit_pad(image, size)
        return np.ascontiguousarray(np.asarray(square, np.float32).transpose(2, 0, 1) / 255)

    def num_tokens(self, arrays: Mapping[str, np.ndarray]) -> int:
        """Answer how many features the encoder makes of a touch."""
        return self._tokens

    def dummy(self) -> dict[str, np.ndarray]:
        """Return a touch that differs from nothing."""
        config = self.config
        return {"pixels": np.zeros((config.channels, config.image_size, config.image_size), np.float32)}

    def examples(self) -> list[object]:
        """Return made touches: blobs on a speckled gel, with the gel, for tests."""
        draw = np.random.default_rng(5)
        grid = np.linspace(-1, 1, 40)
        items: list[object] = []
        for place in ((-0.4, 0.1), (0.5, 0.5), (0.0, -0.6)):
            gel = draw.integers(90, 130, (40, 40, 3), dtype=np.uint8)
            blob = np.exp(-8 * ((grid[:, None] - place[0]) ** 2 + (grid[None] - place[1]) ** 2))
            touched = (gel + 90 * blob[..., None]).astype(np.uint8)
            items.append({"image": touched, "background": gel})
        return items


def _parted(value: object) -> tuple[object, object | None]:
    """Return (picture, background or None)."""
    if isinstance(value, Mapping) and "image" in value:
        return value["image"], value.get("background")
    if isinstance(value, (list, tuple)):
        if len(value) != 2:
            raise BadSample(f"a touch of {len(value)} pictures; give the picture and its background")
        return value[0], value[1]
    return value, None
