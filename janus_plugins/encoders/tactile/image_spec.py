"""Declare `tactile`: pictures of an optical touch sensor (GelSight, DIGIT), less the untouched gel."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from janus_plugins.core.facts import UnderstandingFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import ComponentConfig, ComponentSpec

Count = Annotated[int, Field(ge=1)]


class TactileConfig(ComponentConfig):
    """Set the sizes of the vision transformer, and what becomes of the picture of the untouched gel.

    The sizes default to ViT-B/16 at 224 pixels, as Touch and Go's successors use it. Weights: a vision
    transformer in timm's layout.
    """

    image_size: Count = 224
    patch_size: Count = 16
    width: Count = 768
    depth: Count = 12
    num_heads: Count = 12
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    registers: Annotated[int, Field(ge=0)] = Field(default=0, description="register tokens")
    background: Literal["none", "subtract", "stack"] = Field(
        default="subtract",
        description="none: 3 channels as they are; subtract: the difference to the background; stack: the "
        "picture and a second one (background, or an earlier frame) as 6 channels",
    )
    background_file: str | None = Field(
        default=None, description="picture of the untouched gel, for items that bring none"
    )
    gain: Annotated[float, Field(gt=0)] = Field(default=2.0, description="multiplies a difference in [-1, 1]")
    fit: Literal["pad", "crop"] = "crop"

    @model_validator(mode="after")
    def _sizes_fit(self) -> TactileConfig:
        if self.image_size < self.patch_size:
            raise ValueError(f"image_size {self.image_size} is smaller than patch_size {self.patch_size}")
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        if self.background == "none" and self.background_file is not None:
            raise ValueError("background_file is given, but background: none takes no notice of it")
        return self

    @staticmethod
    def tiny() -> dict[str, Any]:
        """Return options small enough for a test."""
        return {"image_size": 16, "patch_size": 4, "width": 16, "depth": 2, "num_heads": 2}

    @property
    def channels(self) -> int:
        """Return 6 for two pictures, else 3."""
        return 6 if self.background == "stack" else 3

    def facts(self, *neighbours: object) -> UnderstandingFacts:
        """Answer one feature for each whole patch."""
        tokens = (self.image_size // self.patch_size) ** 2
        return UnderstandingFacts(modality="tactile", width=self.width, tokens=tokens, max_tokens=tokens)


TACTILE = ComponentSpec(
    kind=Kind.UNDERSTANDING_ENCODER,
    name="tactile",
    config=TactileConfig,
    factory="janus_plugins.encoders.tactile.image_model:build",
    contract=1,
    processor="janus_plugins.encoders.tactile.image_processor:TactileProcessor",
    summary="pictures of an optical touch sensor, less the untouched gel -> patch features",
    requires=("timm",),
)
