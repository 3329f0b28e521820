"""Declare `dac`: the Descript Audio Codec, sound to frames of codes and back."""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field, model_validator

from janus_plugins.core.facts import GenerationFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import ComponentSpec
from janus_plugins.encoders.codecs.options import Count, SoundConfig, in_use, power_of_two


class DacConfig(SoundConfig):
    """Set the codec's sizes. The defaults are descript/dac_24khz's, of whose 32 codebooks 8 are used.

    descript/dac_16khz has {rate: 16000, codebooks: 12, ratios: [2, 4, 5, 8]}, descript/dac_44khz
    {rate: 44100, codebooks: 9, ratios: [2, 4, 8, 8]}. The codec is used as published; it brings no loss
    of its own.
    """

    codebooks: Count = Field(default=32, description="residual codebooks that the weights hold")
    codebook_size: int = Field(default=1024, ge=2)
    code_width: Count = Field(default=8, description="width in which vectors and codes are compared")
    ratios: tuple[Count, ...] = Field(default=(2, 4, 5, 8), min_length=1, description="strides, first first")
    encoder_width: Count = Field(default=64, description="channels of the encoder's first convolution")
    decoder_width: Count = Field(default=1536, description="channels of the decoder's first convolution")

    @model_validator(mode="after")
    def _sizes_fit(self) -> DacConfig:
        in_use(self.num_codebooks, self.codebooks)
        power_of_two(self.codebook_size)
        if self.decoder_width % 2 ** len(self.ratios):
            raise ValueError(
                f"decoder_width {self.decoder_width} cannot be halved {len(self.ratios)} times, once a stride"
            )
        if min(self.ratios) < 2:
            raise ValueError(f"ratios {self.ratios}: a stride is at least 2")
        return self

    @staticmethod
    def tiny() -> dict[str, Any]:
        """Return options small enough for a test; one of the strides is odd."""
        sizes = {"codebooks": 3, "num_codebooks": 2, "codebook_size": 8, "code_width": 4, "ratios": (2, 3)}
        return {"seconds": 0.03, "rate": 1600, "encoder_width": 4, "decoder_width": 16, **sizes}

    @property
    def hop(self) -> int:
        """Return samples of one frame."""
        return math.prod(self.ratios)

    @property
    def width(self) -> int:
        """Return the width of a frame."""
        width: int = self.encoder_width * 2 ** len(self.ratios)
        return width

    def facts(self, *neighbours: object) -> GenerationFacts:
        """Answer frames of codes."""
        return self.framed(self.width, self.codebook_size)


DAC = ComponentSpec(
    kind=Kind.GENERATION_ENCODER,
    name="dac",
    config=DacConfig,
    factory="janus_plugins.encoders.codecs.dac_model:build",
    contract=1,
    processor="janus_plugins.encoders.codecs.processor:SoundProcessor",
    summary="Descript Audio Codec (transformers): sound <-> frames of codes of residual codebooks",
    requires=("transformers", "soundfile", "scipy"),
    extra="janus-plugins[audio]",
)
