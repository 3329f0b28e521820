"""Declare `encodec`: EnCodec's sound tokenizer, its residual codebooks in one line of codes or in frames."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from janus_plugins.core.facts import GenerationFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import ComponentSpec
from janus_plugins.encoders.codecs.options import Count, SoundConfig, in_use, power_of_two


class EncodecConfig(SoundConfig):
    """Set the codec's sizes. The defaults are facebook/encodec_24khz's at 1.5 kbit/s: 150 codes a second.

    In one line the codes of a frame follow one another, coarse to fine; codebook q's codes are numbered from
    q * codebook_size, so that one head can tell them apart (MusicGen's "flattening" pattern). In frames the
    language model takes one slot for all codes of a frame, which needs an adapter and a head that know
    several codebooks. The codec itself is used as published; it brings no loss of its own.
    """

    layout: Literal["line", "frames"] = Field(
        default="line", description="codes of a frame one after the other, or together in one slot"
    )
    num_codebooks: Count = Field(default=2, description="residual codebooks in use")
    codebooks: Count = Field(default=32, description="residual codebooks that the weights hold")
    codebook_size: int = Field(default=1024, ge=2)
    ratios: tuple[Count, ...] = Field(default=(8, 5, 4, 2), min_length=1, description="strides, last first")
    width: Count = Field(default=128, description="width of a frame, and of a code's vector")
    filters: Count = Field(default=32, description="channels of the first convolution")
    num_lstm_layers: Count = 2

    @model_validator(mode="after")
    def _sizes_fit(self) -> EncodecConfig:
        in_use(self.num_codebooks, self.codebooks)
        power_of_two(self.codebook_size)
        # EnCodec pads by reflection, which needs more samples than it pads.
        if self.frames < 8:
            raise ValueError(f"seconds {self.seconds:g} is {self.frames} frames; at least 8 are needed")
        return self

    @staticmethod
    def tiny() -> dict[str, Any]:
        """Return options small enough for a test."""
        sizes = {"codebooks": 3, "codebook_size": 8, "ratios": (2, 2), "width": 8, "filters": 4}
        return {"seconds": 0.01, "rate": 3200, "num_lstm_layers": 1, **sizes}

    @property
    def hop(self) -> int:
        """Return samples of one frame."""
        return math.prod(self.ratios)

    def facts(self, *neighbours: object) -> GenerationFacts:
        """Answer a line of codes, frame by frame, or frames of codes."""
        if self.layout == "frames":
            return self.framed(self.width, self.codebook_size)
        return GenerationFacts(
            modality="audio",
            form="codes",
            tokens=self.frames * self.num_codebooks,
            width=self.width,
            codebook_size=self.num_codebooks * self.codebook_size,
            grid=(self.frames, self.num_codebooks),
        )


ENCODEC = ComponentSpec(
    kind=Kind.GENERATION_ENCODER,
    name="encodec",
    config=EncodecConfig,
    factory="janus_plugins.encoders.codecs.encodec_model:build",
    contract=1,
    processor="janus_plugins.encoders.codecs.processor:SoundProcessor",
    summary="EnCodec (transformers): sound <-> codes of residual codebooks, in a line or in frames",
    requires=("transformers", "soundfile", "scipy"),
    extra="janus-plugins[audio]",
)
