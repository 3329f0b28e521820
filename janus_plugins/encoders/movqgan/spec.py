"""Declare `movqgan`: MoVQGAN's picture tokenizer, whose decoder is told the codes at every layer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from janus_plugins.core.facts import GenerationFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import ComponentConfig, ComponentSpec

Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0)]
NORM_GROUPS = 32
"""Fixed in diffusers' spatial norm."""


class MovqLossWeights(ComponentConfig):
    """Weigh the terms of the reconstruction loss."""

    l1: Weight = 1.0
    l2: Weight = 0.0
    codebook: Weight = 1.0
    commitment: Weight = 0.25


class MovqganConfig(ComponentConfig):
    """Set the sizes of the tokenizer. The defaults are Kandinsky 2's at 256 pixels: 1,024 of 16,384 codes.

    Weights: a folder or file of diffusers' `VQModel` (kandinsky-community/kandinsky-2-1, folder movq).
    """

    image_size: Count = 256
    in_channels: Literal[1, 3] = Field(default=3, description="1: grey, 3: RGB")
    channels: tuple[Count, ...] = Field(
        default=(128, 256, 256, 512), min_length=1, description="channels by level, halving in between"
    )
    attend: tuple[bool, ...] = Field(
        default=(False, False, False, True), description="which levels have attention"
    )
    num_res_blocks: Count = Field(default=2, description="residual blocks of a level (decoder: one more)")
    code_width: Count = Field(default=4, description="width of a code's vector")
    codebook_size: Annotated[int, Field(ge=2)] = 16384
    loss: MovqLossWeights = Field(default_factory=MovqLossWeights)
    crop: Literal["center", "random"] = Field(
        default="center", description="part of the long side that is kept; random: chosen by the content"
    )
    rotate: bool = Field(default=False, description="apply the EXIF orientation")

    @model_validator(mode="after")
    def _sizes_fit(self) -> MovqganConfig:
        if len(self.attend) != len(self.channels):
            raise ValueError(f"attend has {len(self.attend)} levels, channels {len(self.channels)}")
        if self.image_size % self.downsample:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of {self.downsample}, the downsampling of "
                f"{len(self.channels)} levels"
            )
        for width in sorted(set(self.channels)):
            if width % NORM_GROUPS:
                raise ValueError(
                    f"{width} channels are no multiple of {NORM_GROUPS}, the groups of its norms"
                )
        return self

    @staticmethod
    def tiny() -> dict[str, Any]:
        """Return options small enough for a test."""
        sizes = {"channels": (32, 32), "attend": (False, True), "num_res_blocks": 1}
        return {"image_size": 8, "codebook_size": 16, **sizes}

    @property
    def downsample(self) -> int:
        """Return how many pixels one code spans on each axis."""
        return int(2 ** (len(self.channels) - 1))

    @property
    def side(self) -> int:
        """Return codes along each axis of the picture."""
        return self.image_size // self.downsample

    def facts(self, *neighbours: object) -> GenerationFacts:
        """Answer a square grid of codes."""
        return GenerationFacts(
            modality="image",
            form="codes",
            tokens=self.side**2,
            width=self.code_width,
            codebook_size=self.codebook_size,
            grid=(self.side, self.side),
        )


MOVQGAN = ComponentSpec(
    kind=Kind.GENERATION_ENCODER,
    name="movqgan",
    config=MovqganConfig,
    factory="janus_plugins.encoders.movqgan.model:build",
    contract=1,
    processor="janus_plugins.encoders.movqgan.processor:MovqganProcessor",
    summary="MoVQGAN picture tokenizer (diffusers), spatially conditioned decoder: picture <-> codes",
    requires=("diffusers",),
    extra="janus-plugins[diffusers]",
)
