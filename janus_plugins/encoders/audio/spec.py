"""Declare `audio`: the encoders of Whisper and AST, for sound of any length up to a limit."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from janus_plugins.core.facts import UnderstandingFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import ComponentConfig, ComponentSpec

Count = Annotated[int, Field(ge=1)]

SAMPLE_RATE = 16_000
"""Samples a second that both models hear."""
FRAME_RATE = 100
"""Spectrogram frames a second of both models (hop 160)."""
AST_PATCH, AST_STRIDE = 16, 10
"""Side of AST's patches, and their step, on both axes (AST, section 2.1)."""


class Size(NamedTuple):
    """Hold what a name stands for."""

    width: int
    depth: int
    heads: int
    mel_bins: int
    seconds: float


SIZES = {
    "whisper-tiny": Size(384, 4, 6, 80, 30.0),
    "whisper-base": Size(512, 6, 8, 80, 30.0),
    "whisper-small": Size(768, 12, 12, 80, 30.0),
    "whisper-medium": Size(1024, 24, 16, 80, 30.0),
    "whisper-large-v2": Size(1280, 32, 20, 80, 30.0),
    "whisper-large-v3": Size(1280, 32, 20, 128, 30.0),
    "ast-base": Size(768, 12, 12, 128, 10.24),
}


class AudioConfig(ComponentConfig):
    """Choose an audio encoder. Shorter sound gives fewer features: 50 a second (Whisper), 120 (AST).

    Weights: files of transformers, of the whole model or of its encoder (openai/whisper-base,
    MIT/ast-finetuned-audioset-10-10-0.4593).
    """

    name: Literal[
        "whisper-tiny",
        "whisper-base",
        "whisper-small",
        "whisper-medium",
        "whisper-large-v2",
        "whisper-large-v3",
        "ast-base",
    ] = "whisper-base"
    width: Count | None = None
    depth: Count | None = None
    num_heads: Count | None = None
    mel_bins: Count | None = None
    seconds: Annotated[float, Field(gt=0, le=600)] | None = Field(
        default=None, description="longest sound (default: the published length)"
    )
    too_long: Literal["refuse", "cut"] = Field(
        default="refuse", description="what becomes of longer sound: a bad sample, or its beginning"
    )

    @model_validator(mode="after")
    def _sizes_fit(self) -> AudioConfig:
        sizes = self.sizes
        if sizes.width % sizes.heads or sizes.width % 2:
            raise ValueError(f"width {sizes.width} must be even and a multiple of num_heads {sizes.heads}")
        least = 2 if self.family == "whisper" else AST_PATCH
        if self.frames < least:
            raise ValueError(f"seconds {sizes.seconds} is less than {least / FRAME_RATE}")
        if self.family == "ast" and sizes.mel_bins < AST_PATCH:
            raise ValueError(f"mel_bins {sizes.mel_bins} is less than the {AST_PATCH} of one patch")
        return self

    @staticmethod
    def tiny() -> dict[str, Any]:
        """Return options small enough for a test."""
        return {"name": "whisper-tiny", "width": 16, "depth": 2, "num_heads": 2, "seconds": 1.0}

    @property
    def family(self) -> str:
        """Return "whisper" or "ast"."""
        return self.name.partition("-")[0]

    @property
    def sizes(self) -> Size:
        """Return the sizes, the options' in place of the name's."""
        own: dict[str, Any] = {
            "width": self.width,
            "depth": self.depth,
            "heads": self.num_heads,
            "mel_bins": self.mel_bins,
            "seconds": self.seconds,
        }
        return SIZES[self.name]._replace(**{name: each for name, each in own.items() if each is not None})

    @property
    def frames(self) -> int:
        """Return the spectrogram frames of the longest sound."""
        frames = round(self.sizes.seconds * FRAME_RATE)
        return frames - frames % 2 if self.family == "whisper" else frames

    @property
    def rows(self) -> int:
        """Return AST's patches along the frequencies."""
        return (self.sizes.mel_bins - AST_PATCH) // AST_STRIDE + 1

    def num_features(self, frames: int) -> int:
        """Return the features that the encoder makes of a spectrogram of `frames`."""
        if self.family == "whisper":
            return -(-frames // 2)
        return self.rows * (max(frames - AST_PATCH, 0) // AST_STRIDE + 1)

    def facts(self, *neighbours: object) -> UnderstandingFacts:
        """Answer as many features as the sound is long."""
        most = self.num_features(self.frames)
        return UnderstandingFacts(modality="audio", width=self.sizes.width, tokens=None, max_tokens=most)


AUDIO = ComponentSpec(
    kind=Kind.UNDERSTANDING_ENCODER,
    name="audio",
    config=AudioConfig,
    factory="janus_plugins.encoders.audio.model:build",
    contract=1,
    processor="janus_plugins.encoders.audio.processor:AudioProcessor",
    summary="encoders of Whisper and AST: wav, flac, ogg or samples -> features over time",
    requires=("transformers", "soundfile", "scipy"),
    extra="janus-plugins[audio]",
)
