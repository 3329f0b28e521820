"""Prepare pictures for the towers: each with the mean and spread that it was trained with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from janus_plugins.core.tiles import TiledProcessor, most_tiles
from janus_plugins.encoders.towers.options import PictureConfig

if TYPE_CHECKING:
    from janus_plugins.encoders.towers.eva_spec import EvaClipConfig
    from janus_plugins.encoders.towers.open_clip_spec import OpenClipConfig
    from janus_plugins.encoders.towers.timm_spec import TimmConfig


class TimmProcessor(TiledProcessor):
    """Turn a picture into {"pixels": [C, S, S]}, or [tiles, C, S, S] where tiles are asked for.

    Asks timm (an import of seconds) for what the options do not give.
    """

    def __init__(self, config: TimmConfig) -> None:
        if config.image_size and config.mean and config.std:
            size, mean, std = config.image_size, config.mean, config.std
        else:
            from janus_plugins.encoders.towers.timm_trunk import published_colours, published_size

            size = config.image_size or published_size(config.name)
            mean, std = config.colours(published_colours(config.name))
        tokens = config.facts().max_tokens // most_tiles(config.max_tiles, config.thumbnail)
        super().__init__(size, mean=mean, std=std, tokens=tokens, **_shared(config))


class ClipProcessor(TiledProcessor):
    """Do the same with CLIP's mean and spread, or the tower's own."""

    def __init__(self, config: EvaClipConfig | OpenClipConfig) -> None:
        mean, std = config.colours(config.published)
        tokens = config.facts().max_tokens // most_tiles(config.max_tiles, config.thumbnail)
        super().__init__(config.side, mean=mean, std=std, tokens=tokens, **_shared(config))


def _shared(config: PictureConfig) -> dict[str, Any]:
    return {
        "fit": config.fit,
        "channels": config.channels,
        "background": config.background,
        "rotate": config.rotate,
        "max_tiles": config.max_tiles,
        "thumbnail": config.thumbnail,
    }
