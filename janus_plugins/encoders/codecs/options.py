"""The options that sound codecs share: how long a sound is, and how many of the codebooks are used.

What else its length depends on, samples a second and samples of a frame, each codec says for itself.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from janus_plugins.core.facts import GenerationFacts
from janus_plugins.core.specs import ComponentConfig

Count = Annotated[int, Field(ge=1)]


class SoundConfig(ComponentConfig):
    """Say how much sound a codec takes, at which rate, and into how many codes a frame."""

    seconds: Annotated[float, Field(gt=0, le=600)] = Field(
        default=2.0, description="length of every sound; shorter ones end in silence"
    )
    too_long: Literal["refuse", "cut"] = Field(
        default="refuse", description="what becomes of longer sound: a bad sample, or its beginning"
    )
    num_codebooks: Count = Field(default=8, description="residual codebooks in use")
    rate: Count = Field(default=24_000, description="samples a second")

    @property
    def hop(self) -> int:
        """Return samples of one frame."""
        raise NotImplementedError(f"{type(self).__name__} does not define hop")

    @property
    def frames(self) -> int:
        """Return frames of one sound."""
        return math.ceil(round(self.seconds * self.rate) / self.hop)

    @property
    def samples(self) -> int:
        """Return samples of one sound: whole frames."""
        return self.frames * self.hop

    def framed(self, width: int, codebook_size: int) -> GenerationFacts:
        """Return the facts of frames of codes [T, Q], each code a vector of `width`."""
        return GenerationFacts(
            modality="audio",
            form="codes",
            tokens=self.frames,
            width=width,
            codebook_size=codebook_size,
            grid=(self.frames,),
            codebooks=self.num_codebooks,
        )


def in_use(num_codebooks: int, codebooks: int) -> None:
    """Refuse to use more codebooks than the weights hold; for validators."""
    if num_codebooks > codebooks:
        raise ValueError(f"num_codebooks {num_codebooks} is more than codebooks {codebooks}")


def power_of_two(codebook_size: int) -> None:
    """Refuse a size that transformers' codecs cannot have; for validators."""
    if codebook_size & (codebook_size - 1):
        raise ValueError(f"codebook_size {codebook_size} is no power of 2")
