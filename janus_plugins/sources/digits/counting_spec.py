"""What the counting source offers, and its options."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from janus_plugins.core.facts import SourceFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import CONTRACT_VERSION, ComponentConfig, ComponentSpec


class CountingConfig(ComponentConfig):
    """Choose what is counted from, and a side of the digits' fixed split."""

    split: Literal["train", "test"] = Field(default="train", description="side of the fixed split")
    ask: Literal["words", "picture", "next"] = Field(
        default="words",
        description="words: text alone asks for words and pictures; picture: a picture asks for them; "
        "next: a picture asks for one picture, of the next digit",
    )
    most: Annotated[int, Field(ge=1, le=9)] = Field(default=3, description="most pictures in an answer")
    size: Annotated[int, Field(ge=8, le=1024)] = Field(default=16, description="side of a picture in pixels")
    modality: str = Field(default="image", description="modality of the model that reads and draws them")
    words: str = Field(default="Count from {first} to {last}.", description="asked of words")
    picture: str = Field(default="Count on to {last}.", description="asked of a picture")
    next: str = Field(default="The next digit.", description="asked for one picture; zero follows nine")
    test_percent: Annotated[int, Field(ge=1, le=90)] = Field(default=20, description="share held out")
    split_seed: int = Field(default=0, description="fixes which scans are held out")

    def facts(self) -> SourceFacts:
        """Answer which task and which paths the samples serve."""
        task = "generation" if self.ask == "next" else "interleaved"
        shown = frozenset() if self.ask == "words" else frozenset({self.modality})
        return SourceFacts(
            tasks=frozenset({task}), understanding=shown, generation=frozenset({self.modality})
        )


COUNTING = ComponentSpec(
    kind=Kind.SOURCE,
    name="counting",
    config=CountingConfig,
    factory="janus_plugins.sources.digits.counting:build",
    contract=CONTRACT_VERSION,
    summary="counting in words and pictures of handwritten digits, from words or from a picture",
    requires=("sklearn",),
    extra="janus-plugins[demo]",
)
