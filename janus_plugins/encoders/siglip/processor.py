"""Prepare pictures for SigLIP as Janus does: long side to size, the rest padded grey, [-1, 1] or [0, 1]."""

from __future__ import annotations

from typing import TYPE_CHECKING

from janus_plugins.core.media import ImageProcessor

if TYPE_CHECKING:
    from janus_plugins.encoders.siglip.spec import SiglipConfig


class SiglipProcessor(ImageProcessor):
    """Turn a picture into {"pixels": [channels, S, S]}. Source: Janus, `VLMImageProcessor`."""

    def __init__(self, config: SiglipConfig) -> None:
        middle = 0.5 if config.normalize else 0.0
        super().__init__(
            config.image_size,
            fit="pad",
            mean=(middle,) * 3,
            std=(1 - middle,) * 3,
            channels=config.channels,
            tokens=config.facts().max_tokens,
            background=config.background,
            rotate=config.rotate,
        )
