"""Prepare pictures for InternViT: one square, or tiles and the whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from janus_plugins.core.tiles import TiledProcessor

if TYPE_CHECKING:
    from janus_plugins.encoders.internvit.spec import InternVitConfig


class InternVitProcessor(TiledProcessor):
    """Turn a picture into {"pixels": [C, S, S]}, or [tiles, C, S, S] where tiles are asked for."""

    def __init__(self, config: InternVitConfig) -> None:
        super().__init__(
            config.image_size,
            max_tiles=config.max_tiles,
            thumbnail=config.thumbnail,
            fit=config.fit,
            mean=config.mean,
            std=config.std,
            channels=config.channels,
            tokens=config.side**2,
            background=config.background,
            rotate=config.rotate,
        )
