"""Declare `mimi`: Mimi, the codec of Moshi, sound to frames of codes and back."""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field, model_validator

from janus_plugins.core.facts import GenerationFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import ComponentSpec
from janus_plugins.encoders.codecs.options import Count, SoundConfig, in_use, power_of_two

HALVING = 2
"""Stride between the convolutional encoder's frames and those of codes."""


class MimiConfig(SoundConfig):
    """Set the codec's sizes. The defaults are kyutai/mimi's, of whose 32 codebooks Moshi uses 8.

    That is 12.5 frames a second. The first code of a frame is semantic (distilled from speech), quantised
    apart from the others, which are residuals of one another. The codec is used as published; it
    brings no loss of its own.
    """

    codebooks: int = Field(
        default=32, ge=2, description="codebooks that the weights hold, the semantic one included"
    )
    codebook_size: int = Field(default=2048, ge=2)
    code_width: Count = Field(default=256, description="width in which vectors and codes are compared")
    ratios: tuple[Count, ...] = Field(default=(8, 6, 5, 4), min_length=1, description="strides, last first")
    width: Count = Field(default=512, description="width of a frame")
    filters: Count = Field(default=64, description="channels of the first convolution")
    num_layers: Count = Field(default=8, description="transformer layers, in the encoder as in the decoder")
    num_heads: Count = 8
    feed: Count = Field(default=2048, description="width of the transformers' hidden layers")
    window: Count = Field(default=250, description="frames that the transformers look back")

    @model_validator(mode="after")
    def _sizes_fit(self) -> MimiConfig:
        in_use(self.num_codebooks, self.codebooks)
        power_of_two(self.codebook_size)
        if self.width % (2 * self.num_heads):
            raise ValueError(f"width {self.width} is no multiple of twice num_heads {self.num_heads}")
        if self.rate % math.prod(self.ratios):
            raise ValueError(
                f"rate {self.rate} is no multiple of the strides' product {math.prod(self.ratios)}"
            )
        return self

    @staticmethod
    def tiny() -> dict[str, Any]:
        """Return options small enough for a test."""
        sizes = {"codebooks": 4, "num_codebooks": 3, "codebook_size": 8, "code_width": 4, "ratios": (2, 2)}
        layers = {"width": 8, "filters": 2, "num_layers": 1, "num_heads": 2, "feed": 16, "window": 4}
        return {"seconds": 0.02, "rate": 3200, **sizes, **layers}

    @property
    def hop(self) -> int:
        """Return samples of one frame."""
        return HALVING * math.prod(self.ratios)

    def facts(self, *neighbours: object) -> GenerationFacts:
        """Answer frames of codes."""
        return self.framed(self.width, self.codebook_size)


MIMI = ComponentSpec(
    kind=Kind.GENERATION_ENCODER,
    name="mimi",
    config=MimiConfig,
    factory="janus_plugins.encoders.codecs.mimi_model:build",
    contract=1,
    processor="janus_plugins.encoders.codecs.processor:SoundProcessor",
    summary="Mimi (transformers): sound <-> frames of codes, the first of them semantic",
    requires=("transformers", "soundfile", "scipy"),
    extra="janus-plugins[audio]",
)
