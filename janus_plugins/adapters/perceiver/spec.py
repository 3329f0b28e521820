"""Declare `perceiver`: a resampler whose learnt queries read any number of features into a fixed number."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from janus_plugins.core.facts import AdapterFacts, GenerationFacts, LanguageModelFacts, UnderstandingFacts
from janus_plugins.core.grids import check_features
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import ComponentConfig, ComponentSpec

Count = Annotated[int, Field(ge=1)]


class PerceiverConfig(ComponentConfig):
    """Set the size of the resampler. The defaults are Flamingo's, with fewer layers."""

    tokens: Count = Field(default=64, description="tokens that leave, whatever enters")
    depth: Count = 2
    num_heads: Count = 8
    head_width: Count = 64
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    width: Count | None = Field(default=None, description="width inside (default: the encoder's)")
    padding: Literal["none", "zeros"] | None = Field(
        default=None,
        deprecated=True,
        description="without effect, and accepted of older files alone: an adapter is told how many "
        "features of an item count",
    )

    def facts(self, *neighbours: UnderstandingFacts | GenerationFacts | LanguageModelFacts) -> AdapterFacts:
        """Answer for `facts(source, model)`.

        Raises:
            WiringError: it stands on a generation path.
        """
        source, model = neighbours
        check_features(source, "perceiver")  # type: ignore[arg-type]
        return AdapterFacts(accepts="features", in_width=source.width, out_width=model.width)

    def output_tokens(self, tokens: int) -> int:
        """Answer the number of queries."""
        return self.tokens


PERCEIVER = ComponentSpec(
    kind=Kind.ADAPTER,
    name="perceiver",
    config=PerceiverConfig,
    factory="janus_plugins.adapters.perceiver.model:build",
    contract=1,
    summary="perceiver resampler (Flamingo): any number of features -> a fixed number of tokens",
)
