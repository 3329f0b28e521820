"""Declare `perceiver`: a resampler whose learnt queries read any number of features into a fixed number."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from janus_plugins.core.errors import WiringError
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
    padding: Literal["none", "zeros"] = Field(
        default="none",
        description="zeros: the encoder's items differ in length, and it writes zeros behind an item's last "
        "feature; features that are zero throughout are then not seen",
    )

    def facts(self, *neighbours: UnderstandingFacts | GenerationFacts | LanguageModelFacts) -> AdapterFacts:
        """Answer for `facts(source, model)`.

        Raises:
            WiringError: items differ in length and the options do not say how padding is told.
        """
        source, model = neighbours
        seen = check_features(source, "perceiver")  # type: ignore[arg-type]
        if seen.tokens is None and self.padding == "none":
            raise WiringError(
                f"adapter 'perceiver' reads all features of an item, but the encoder's items have up to "
                f"{seen.max_tokens} of them, padded in a batch; set padding: zeros if the encoder writes "
                "zeros behind the last one (the shipped ones do)"
            )
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
