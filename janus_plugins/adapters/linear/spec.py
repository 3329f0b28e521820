"""Declare `linear`: one linear layer from features or latents to the language model's width."""

from __future__ import annotations

from pydantic import Field

from janus_plugins.core.facts import (
    AdapterFacts,
    AdapterInput,
    GenerationFacts,
    LanguageModelFacts,
    UnderstandingFacts,
)
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import ComponentConfig, ComponentSpec


class LinearConfig(ComponentConfig):
    """Set what stands around the linear layer. The default is LLaVA 1.0's projector."""

    bias: bool = True
    norm: bool = Field(default=False, description="normalise the features first (LayerNorm)")

    def facts(self, *neighbours: UnderstandingFacts | GenerationFacts | LanguageModelFacts) -> AdapterFacts:
        """Answer for `facts(source, model)`: read what the encoder makes, write the model's width."""
        source, model = neighbours
        accepts: AdapterInput = "latents" if isinstance(source, GenerationFacts) else "features"
        return AdapterFacts(accepts=accepts, in_width=source.width, out_width=model.width)


LINEAR = ComponentSpec(
    kind=Kind.ADAPTER,
    name="linear",
    config=LinearConfig,
    factory="janus_plugins.adapters.linear.model:build",
    contract=1,
    summary="linear layer from features or latents to the language model's width",
)
