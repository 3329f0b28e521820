"""What the digits source offers, and its options."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from janus_plugins.core.facts import SourceFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import CONTRACT_VERSION, ComponentConfig, ComponentSpec

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""The answer for each class."""


class DigitsConfig(ComponentConfig):
    """Choose a side of the fixed split and what is asked of it."""

    split: Literal["train", "test"] = Field(default="train", description="side of the fixed split")
    ask: Literal["understanding", "generation"] = Field(
        default="understanding", description="read the picture, or draw it"
    )
    size: Annotated[int, Field(ge=8, le=1024)] = Field(default=16, description="side of a picture in pixels")
    modality: str = Field(default="image", description="modality of the model that reads or draws them")
    question: str = Field(default="Which digit is this?", description="asked of a picture")
    prompts: tuple[str, ...] = Field(
        default=("a handwritten {word}",),
        min_length=1,
        description="asked for a picture; {word}: the digit",
    )
    test_percent: Annotated[int, Field(ge=1, le=90)] = Field(default=20, description="share held out")
    split_seed: int = Field(default=0, description="fixes which scans are held out")

    def facts(self) -> SourceFacts:
        """Answer which task and which path the samples serve."""
        paths = {self.ask: frozenset({self.modality})}
        return SourceFacts(tasks=frozenset({self.ask}), **paths)


DIGITS = ComponentSpec(
    kind=Kind.SOURCE,
    name="digits",
    config=DigitsConfig,
    factory="janus_plugins.sources.digits.source:build",
    contract=CONTRACT_VERSION,
    summary="1,797 real scans of handwritten digits (scikit-learn's load_digits)",
    requires=("sklearn",),
    extra="janus-plugins[demo]",
)
