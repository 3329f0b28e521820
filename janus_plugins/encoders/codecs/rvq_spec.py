"""Declare `rvq`: a small sound codec with residual codebooks that is trained here, from random weights."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from janus_plugins.core.facts import GenerationFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import ComponentConfig, ComponentSpec
from janus_plugins.encoders.codecs.options import Count, SoundConfig

Weight = Annotated[float, Field(ge=0)]


class RvqLoss(ComponentConfig):
    """Weigh the parts of the codec's own loss."""

    samples: Weight = Field(default=4.0, description="mean absolute error of the samples")
    spectra: Weight = Field(default=1.0, description="mean absolute error of short-time spectra")
    commitment: Weight = Field(default=0.25, description="squared distance of frames to their codes")
    windows: tuple[Annotated[int, Field(ge=8)], ...] = Field(
        default=(128, 512), min_length=1, description="samples of one spectrum"
    )


class RvqConfig(SoundConfig):
    """Set the codec's sizes.

    A stage with `reconstruct: audio` trains it. The codebooks learn as running means of the frames that
    chose them (SoundStream, 2107.03312, section III-C); a code that too few choose starts again at one.
    """

    seconds: Annotated[float, Field(gt=0, le=600)] = Field(
        default=0.4, description="length of every sound; shorter ones end in silence"
    )
    rate: Count = Field(default=8_000, description="samples a second")
    num_codebooks: Count = Field(default=4, description="residual codebooks")
    codebook_size: int = Field(default=256, ge=2)
    stride: Annotated[int, Field(ge=2, multiple_of=2)] = Field(
        default=128, description="samples of one frame"
    )
    width: Count = Field(default=128, description="width of a frame, and of a code's vector")
    num_blocks: Count = Field(default=2, description="residual blocks, in the encoder as in the decoder")
    decay: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.98, description="of the running means, at each step"
    )
    restart_below: Weight = Field(default=0.1, description="frames a step that a code must be chosen by")
    loss: RvqLoss = Field(default_factory=RvqLoss)

    @model_validator(mode="after")
    def _windows_fit(self) -> RvqConfig:
        if max(self.loss.windows) > self.samples:
            raise ValueError(
                f"loss.windows {self.loss.windows}: the longest is more than a sound, {self.samples} samples"
            )
        return self

    @staticmethod
    def tiny() -> dict[str, Any]:
        """Return options small enough for a test."""
        sizes = {"num_codebooks": 2, "codebook_size": 8, "stride": 4, "width": 8, "num_blocks": 1}
        return {"seconds": 0.02, "rate": 1600, **sizes, "loss": {"windows": (8, 16)}}

    @property
    def hop(self) -> int:
        """Return samples of one frame."""
        return self.stride

    def facts(self, *neighbours: object) -> GenerationFacts:
        """Answer frames of codes."""
        return self.framed(self.width, self.codebook_size)


RVQ = ComponentSpec(
    kind=Kind.GENERATION_ENCODER,
    name="rvq",
    config=RvqConfig,
    factory="janus_plugins.encoders.codecs.rvq_model:build",
    contract=1,
    processor="janus_plugins.encoders.codecs.processor:SoundProcessor",
    summary="a small codec, trained here: sound <-> frames of codes of residual codebooks",
    requires=("soundfile", "scipy"),
    extra="janus-plugins[audio]",
)
