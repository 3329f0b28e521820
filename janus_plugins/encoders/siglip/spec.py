"""Declare `siglip`: timm's SigLIP vision transformers, by name, with size overrides."""

from __future__ import annotations

import re
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from janus_plugins.core.facts import UnderstandingFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import ComponentConfig, ComponentSpec

Count = Annotated[int, Field(ge=1)]
_NAME = re.compile(r"vit_([a-z0-9]+)_patch(\d+)_siglip(?:_gap)?_(\d+)")


class Size(NamedTuple):
    """Hold what a size's name stands for (timm, `vision_transformer.py`)."""

    width: int
    depth: int
    heads: int


SIZES = {
    "base": Size(768, 12, 12),
    "large": Size(1024, 24, 16),
    "so400m": Size(1152, 27, 16),
    "giantopt": Size(1536, 40, 16),
}


class SiglipConfig(ComponentConfig):
    """Choose a SigLIP vision transformer. The default is Janus's: SigLIP-Large, patch 16, 384 pixels."""

    name: str = Field(default="vit_large_patch16_siglip_384", description="timm's model name")
    img_size: Count | None = Field(default=None, description="side of the picture in pixels")
    patch_size: Count | None = None
    embed_dim: Count | None = None
    depth: Count | None = None
    num_heads: Count | None = None
    mlp_ratio: Annotated[float, Field(gt=0)] | None = None
    channels: Literal[1, 3] = Field(default=3, description="1: grey, 3: RGB")
    background: tuple[int, int, int] = Field(default=(127, 127, 127), description="colour of the padding")
    normalize: bool = Field(default=True, description="pixels in [-1, 1]; false: in [0, 1]")
    rotate: bool = Field(default=False, description="apply the EXIF orientation (Janus does not)")

    @model_validator(mode="after")
    def _sizes_fit(self) -> SiglipConfig:
        match = _NAME.fullmatch(self.name)
        if match is None or match[1] not in SIZES:
            raise ValueError(
                f"{self.name!r} is not a SigLIP of timm; names read vit_SIZE_patchP_siglip_PIXELS with SIZE "
                f"one of {', '.join(SIZES)}, e.g. vit_large_patch16_siglip_384"
            )
        if self.image_size < self.patch:
            raise ValueError(f"img_size {self.image_size} is smaller than patch_size {self.patch}")
        heads = self.num_heads or self._size.heads
        if self.width % heads:
            raise ValueError(f"embed_dim {self.width} is not a multiple of num_heads {heads}")
        return self

    @property
    def _size(self) -> Size:
        match = _NAME.fullmatch(self.name)
        assert match is not None
        return SIZES[match[1]]

    @property
    def image_size(self) -> int:
        """Return the side of the picture in pixels."""
        match = _NAME.fullmatch(self.name)
        assert match is not None
        return self.img_size or int(match[3])

    @property
    def patch(self) -> int:
        """Return the side of a patch in pixels."""
        match = _NAME.fullmatch(self.name)
        assert match is not None
        return self.patch_size or int(match[2])

    @property
    def width(self) -> int:
        """Return the width of a feature."""
        return self.embed_dim or self._size.width

    def facts(self, *neighbours: object) -> UnderstandingFacts:
        """Answer one feature for each whole patch: 576 of width 1024 by default."""
        tokens = (self.image_size // self.patch) ** 2
        return UnderstandingFacts(modality="image", width=self.width, tokens=tokens, max_tokens=tokens)


SIGLIP = ComponentSpec(
    kind=Kind.UNDERSTANDING_ENCODER,
    name="siglip",
    config=SiglipConfig,
    factory="janus_plugins.encoders.siglip.model:build",
    contract=1,
    processor="janus_plugins.encoders.siglip.processor:SiglipProcessor",
    summary="SigLIP vision transformer (timm): picture -> patch features",
    requires=("timm",),
)
