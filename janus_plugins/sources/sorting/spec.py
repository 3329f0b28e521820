"""What the sorting source offers, and its options."""

from __future__ import annotations

from math import perm
from typing import Annotated, Literal

from pydantic import Field, model_validator

from janus_plugins.core.facts import SourceFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import CONTRACT_VERSION, ComponentConfig, ComponentSpec

MOST_PROMPTS = 500_000
"""More prompts than this are refused: they are listed in memory."""


class SortingConfig(ComponentConfig):
    """Choose how many numbers a prompt holds, from which range, and a side of the split."""

    split: Literal["train", "test"] = Field(default="train", description="side of the split")
    count: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = Field(
        default=(3, 3), description="fewest and most numbers in a prompt; they are distinct"
    )
    numbers: Annotated[int, Field(ge=2, le=21)] = Field(
        default=10, description="how many numbers there are, counted from zero"
    )
    prompt: str = Field(default="Put in order:", description="stands before the numbers")
    test_percent: Annotated[int, Field(ge=1, le=90)] = Field(default=20, description="share held out")
    split_seed: int = Field(default=0, description="fixes which prompts are held out")

    @model_validator(mode="after")
    def _possible(self) -> SortingConfig:
        fewest, most = self.count
        if not fewest <= most <= self.numbers:
            raise ValueError(f"count {self.count} must rise and be at most numbers ({self.numbers})")
        prompts = sum(perm(self.numbers, count) for count in range(fewest, most + 1))
        if prompts > MOST_PROMPTS:
            raise ValueError(
                f"count {self.count} of {self.numbers} numbers gives {prompts} prompts, more than "
                f"{MOST_PROMPTS}; use fewer numbers or a smaller count"
            )
        return self

    def facts(self) -> SourceFacts:
        """Answer that every sample is text."""
        return SourceFacts(tasks=frozenset({"text"}))


SORTING = ComponentSpec(
    kind=Kind.SOURCE,
    name="sorting",
    config=SortingConfig,
    factory="janus_plugins.sources.sorting.source:build",
    contract=CONTRACT_VERSION,
    summary="put numbers written as words in order; held-out prompts are never trained on",
)
