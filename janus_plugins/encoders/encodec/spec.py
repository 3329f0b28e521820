"""Declare `encodec`: EnCodec's sound tokenizer, its residual codebooks laid out as one line of codes."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from janus_plugins.core.facts import GenerationFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import ComponentConfig, ComponentSpec

Count = Annotated[int, Field(ge=1)]


class EncodecConfig(ComponentConfig):
    """Set the codec's sizes. The defaults are facebook/encodec_24khz's at 1.5 kbit/s: 150 codes a second.

    Frame by frame, the codes of the codebooks in use follow one another, coarse to fine; codebook q's
    codes are numbered from q * codebook_size, so that one head can tell them apart (MusicGen's
    "flattening" pattern). The codec itself is used as published; it brings no loss of its own.
    """

    seconds: Annotated[float, Field(gt=0, le=600)] = Field(
        default=2.0, description="length of every sound; shorter ones end in silence"
    )
    too_long: Literal["refuse", "cut"] = Field(
        default="refuse", description="what becomes of longer sound: a bad sample, or its beginning"
    )
    num_codebooks: Count = Field(default=2, description="residual codebooks in use")
    codebooks: Count = Field(default=32, description="residual codebooks that the weights hold")
    codebook_size: Annotated[int, Field(ge=2)] = 1024
    rate: Count = Field(default=24_000, description="samples a second")
    ratios: tuple[Count, ...] = Field(default=(8, 5, 4, 2), min_length=1, description="strides, last first")
    width: Count = Field(default=128, description="width of a frame, and of a code's vector")
    filters: Count = Field(default=32, description="channels of the first convolution")
    num_lstm_layers: Count = 2

    @model_validator(mode="after")
    def _sizes_fit(self) -> EncodecConfig:
        if self.num_codebooks > self.codebooks:
            raise ValueError(f"num_codebooks {self.num_codebooks} is more than codebooks {self.codebooks}")
        if self.codebook_size & (self.codebook_size - 1):
            raise ValueError(f"codebook_size {self.codebook_size} is no power of 2")
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

    @property
    def frames(self) -> int:
        """Return frames of one sound."""
        return math.ceil(round(self.seconds * self.rate) / self.hop)

    @property
    def samples(self) -> int:
        """Return samples of one sound: whole frames."""
        return self.frames * self.hop

    def facts(self, *neighbours: object) -> GenerationFacts:
        """Answer a line of codes, frame by frame."""
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
    factory="janus_plugins.encoders.encodec.model:build",
    contract=1,
    processor="janus_plugins.encoders.encodec.processor:EncodecProcessor",
    summary="EnCodec (transformers): sound <-> codes of residual codebooks, in one line",
    requires=("transformers", "soundfile", "scipy"),
    extra="janus-plugins[audio]",
)
