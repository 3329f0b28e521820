"""Declare `siglip2`: SigLIP 2 at native aspect ratio and variable resolution (NaFlex)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from janus_plugins.core.facts import UnderstandingFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import ComponentConfig, ComponentSpec

Count = Annotated[int, Field(ge=1)]


class Size(NamedTuple):
    """Hold what a size's name stands for (config.json of google/siglip2-*)."""

    width: int
    depth: int
    heads: int
    mlp_width: int


SIZES = {
    "base": Size(768, 12, 12, 3072),
    "large": Size(1024, 24, 16, 4096),
    "so400m": Size(1152, 27, 16, 4304),
    "giant": Size(1536, 40, 16, 6144),
}


class Siglip2Config(ComponentConfig):
    """Choose a SigLIP 2. A picture keeps its shape and becomes at most `max_patches` features, row-major.

    Weights: files of transformers, of the NaFlex models (google/siglip2-base-patch16-naflex) or of the
    models of one size, whose `position_side` is their picture's side in patches.
    """

    size: Literal["base", "large", "so400m", "giant"] = "base"
    patch_size: Count = 16
    max_patches: Count = Field(default=256, description="most patches of a picture")
    position_side: Count = Field(default=16, description="side of the table of positions, in patches")
    width: Count | None = None
    depth: Count | None = None
    num_heads: Count | None = None
    mlp_width: Count | None = None
    rotate: bool = Field(default=False, description="apply the EXIF orientation")

    @model_validator(mode="after")
    def _sizes_fit(self) -> Siglip2Config:
        sizes = self.sizes
        if sizes.width % sizes.heads:
            raise ValueError(f"width {sizes.width} is not a multiple of num_heads {sizes.heads}")
        return self

    @staticmethod
    def tiny() -> dict[str, Any]:
        """Return options small enough for a test."""
        sizes = {"width": 16, "depth": 2, "num_heads": 2, "mlp_width": 32}
        return {"patch_size": 4, "max_patches": 12, "position_side": 3, **sizes}

    @property
    def sizes(self) -> Size:
        """Return the sizes, the options' in place of the name's."""
        own: dict[str, Any] = {
            "width": self.width,
            "depth": self.depth,
            "heads": self.num_heads,
            "mlp_width": self.mlp_width,
        }
        return SIZES[self.size]._replace(**{name: each for name, each in own.items() if each is not None})

    def facts(self, *neighbours: object) -> UnderstandingFacts:
        """Answer as many features as a picture has patches."""
        return UnderstandingFacts(
            modality="image", width=self.sizes.width, tokens=None, max_tokens=self.max_patches
        )


SIGLIP2 = ComponentSpec(
    kind=Kind.UNDERSTANDING_ENCODER,
    name="siglip2",
    config=Siglip2Config,
    factory="janus_plugins.encoders.siglip2.model:build",
    contract=1,
    processor="janus_plugins.encoders.siglip2.processor:Siglip2Processor",
    summary="SigLIP 2 NaFlex: picture of any shape -> as many patch features as it needs",
    requires=("transformers",),
)
