"""Declare `eva-clip`: the image towers of EVA-CLIP, by the names that open_clip gives them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from janus_plugins.core.facts import UnderstandingFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import ComponentSpec
from janus_plugins.encoders.towers.options import CLIP, Colours, Count, PictureConfig


class Tower(NamedTuple):
    """Hold what a name stands for (open_clip's model configs, timm's `eva.py`)."""

    timm: str
    width: int
    heads: int
    patch: int
    size: int


TOWERS = {
    "EVA02-B-16": Tower("eva02_base_patch16_clip_224", 768, 12, 16, 224),
    "EVA02-L-14": Tower("eva02_large_patch14_clip_224", 1024, 16, 14, 224),
    "EVA02-L-14-336": Tower("eva02_large_patch14_clip_336", 1024, 16, 14, 336),
    "EVA02-E-14": Tower("eva02_enormous_patch14_clip_224", 1792, 16, 14, 224),
    "EVA02-E-14-plus": Tower("eva02_enormous_patch14_clip_224", 1792, 16, 14, 224),
    "EVA01-g-14": Tower("eva_giant_patch14_clip_224", 1408, 16, 14, 224),
    "EVA01-g-14-plus": Tower("eva_giant_patch14_clip_224", 1408, 16, 14, 224),
}
"""The -plus models differ in their text towers only."""


class EvaClipConfig(PictureConfig):
    """Choose an EVA-CLIP image tower; sizes other than the name's make one to be trained afresh.

    Weights: a file or folder in the layout of open_clip, of timm or of EVA-CLIP, a hub id, or one of
    timm's tags ("merged2b").
    """

    name: Literal[
        "EVA02-B-16",
        "EVA02-L-14",
        "EVA02-L-14-336",
        "EVA02-E-14",
        "EVA02-E-14-plus",
        "EVA01-g-14",
        "EVA01-g-14-plus",
    ] = "EVA02-L-14-336"
    patch_size: Count | None = None
    embed_dim: Count | None = None
    depth: Count | None = None
    num_heads: Count | None = None
    mlp_ratio: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _sizes_fit(self) -> EvaClipConfig:
        if self.side < self.patch:
            raise ValueError(f"image_size {self.side} is smaller than patch_size {self.patch}")
        width, heads = self.embed_dim or self._tower.width, self.num_heads or self._tower.heads
        if width % heads or (width // heads) % 4:
            raise ValueError(
                f"embed_dim {width} over num_heads {heads} must be a multiple of 4 (rotary positions)"
            )
        return self

    @staticmethod
    def tiny() -> dict[str, Any]:
        """Return options small enough for a test."""
        sizes = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 4}
        return {"name": "EVA02-B-16", "image_size": 16, **sizes}

    @property
    def _tower(self) -> Tower:
        return TOWERS[self.name]

    @property
    def timm_name(self) -> str:
        """Return timm's name of the tower."""
        return self._tower.timm

    @property
    def side(self) -> int:
        """Return the side of the picture in pixels."""
        return self.image_size or self._tower.size

    @property
    def patch(self) -> int:
        """Return the side of a patch in pixels."""
        return self.patch_size or self._tower.patch

    @property
    def published(self) -> Colours:
        """Return the colours that the towers were trained with."""
        return CLIP

    @property
    def sizes(self) -> dict[str, Any]:
        """Return the sizes that differ from the name's, as timm's arguments."""
        names = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def facts(self, *neighbours: object) -> UnderstandingFacts:
        """Answer one token for each whole patch; the class token is left out."""
        tokens = (self.side // self.patch) ** 2
        width = self.embed_dim or self._tower.width
        return self.seen(width, tokens)


EVA_CLIP = ComponentSpec(
    kind=Kind.UNDERSTANDING_ENCODER,
    name="eva-clip",
    config=EvaClipConfig,
    factory="janus_plugins.encoders.towers.timm_trunk:build_eva",
    contract=1,
    processor="janus_plugins.encoders.towers.processor:ClipProcessor",
    summary="EVA-CLIP image tower (EVA02 B, L, E; EVA01 g): picture -> patch features",
    requires=("timm",),
)
