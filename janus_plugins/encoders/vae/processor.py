"""Prepare pictures for the KL autoencoder (short side to size, long side cropped, [-1, 1]), and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from janus_plugins.core.media import ImageProcessor

if TYPE_CHECKING:
    from janus_plugins.encoders.vae.spec import VaeConfig


class VaeProcessor(ImageProcessor):
    """Turn a picture into {"pixels": [channels, S, S]} and decoded pixels into a picture."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__(
            config.image_size,
            fit="crop",
            channels=config.in_channels,
            tokens=config.facts().tokens,
            crop=config.crop,
            rotate=config.rotate,
        )
