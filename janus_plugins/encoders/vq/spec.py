"""Declare `vq`: the VQ-16 picture tokenizer of LlamaGen, which Janus uses, with its sizes as options."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from janus_plugins.core.facts import GenerationFacts, UnderstandingFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import ComponentConfig, ComponentSpec

Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0)]


class LossWeights(ComponentConfig):
    """Weigh the terms of the reconstruction loss. Source: LlamaGen, `vq_train.py`."""

    l1: Weight = 0.0
    l2: Weight = 1.0
    codebook: Weight = 1.0
    commitment: Weight = 0.25
    entropy: Weight = Field(default=0.0, description="reward sure choices that use the whole codebook")
    revive: Weight = Field(default=1.0, description="pull on the codes that `revive_after` found unused")


class VqConfig(ComponentConfig):
    """Set the sizes of the VQ tokenizer. The defaults are VQ-16 at 384 pixels: 576 of 16,384 codes."""

    image_size: Count = 384
    in_channels: Literal[1, 3] = Field(default=3, description="1: grey, 3: RGB")
    channels: Count = Field(default=128, description="channels at full resolution")
    multipliers: tuple[Count, ...] = Field(
        default=(1, 1, 2, 2, 4), min_length=1, description="channels by level, halving in between"
    )
    num_res_blocks: Count = Field(default=2, description="residual blocks of a level (decoder: one more)")
    z_channels: Count = Field(default=256, description="channels between the encoder and the quantiser")
    code_width: Count = Field(default=8, description="width of a code's vector")
    codebook_size: Annotated[int, Field(ge=2)] = 16384
    norm_groups: Count = Field(default=32, description="groups of GroupNorm")
    loss: LossWeights = Field(default_factory=LossWeights)
    revive_after: Count | None = Field(
        default=None, description="training steps without use after which a code is drawn to new places"
    )
    crop: Literal["center", "random"] = Field(
        default="center", description="part of the long side that is kept; random: chosen by the content"
    )
    rotate: bool = Field(default=False, description="apply the EXIF orientation (Janus does not)")

    @model_validator(mode="after")
    def _sizes_fit(self) -> VqConfig:
        if self.image_size % self.downsample:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of {self.downsample}, the downsampling of "
                f"{len(self.multipliers)} multipliers"
            )
        widths = {self.channels * multiplier for multiplier in self.multipliers}
        for width in sorted(widths):
            if width % self.norm_groups:
                raise ValueError(f"{width} channels do not divide into norm_groups {self.norm_groups}")
        return self

    @property
    def downsample(self) -> int:
        """Return how many pixels one code spans on each axis."""
        return int(2 ** (len(self.multipliers) - 1))

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

    def feature_facts(self) -> UnderstandingFacts:
        """Answer the vectors of a picture's codes."""
        count = self.side**2
        return UnderstandingFacts(modality="image", width=self.code_width, tokens=count, max_tokens=count)


VQ = ComponentSpec(
    kind=Kind.GENERATION_ENCODER,
    name="vq",
    config=VqConfig,
    factory="janus_plugins.encoders.vq.model:build",
    contract=1,
    processor="janus_plugins.encoders.vq.processor:VqProcessor",
    summary="VQ picture tokenizer (LlamaGen VQ-16): picture <-> codes",
)
