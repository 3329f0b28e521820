"""Declare `mlp`: an MLP from an encoder's features, or latents, to the language model's width."""

from __future__ import annotations

from typing import Annotated

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


class MlpConfig(ComponentConfig):
    """Set the size of the MLP. The defaults are Janus's `mlp_gelu` aligner."""

    depth: Annotated[int, Field(ge=1)] = Field(default=2, description="linear layers, GELU between them")
    width: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="width of the hidden layers (default: the language model's)"
    )

    def facts(self, *neighbours: UnderstandingFacts | GenerationFacts | LanguageModelFacts) -> AdapterFacts:
        """Answer for `facts(source, model)`: read what the encoder makes, write the model's width."""
        source, model = neighbours
        accepts: AdapterInput = "latents" if isinstance(source, GenerationFacts) else "features"
        return AdapterFacts(accepts=accepts, in_width=source.width, out_width=model.width)


MLP = ComponentSpec(
    kind=Kind.ADAPTER,
    name="mlp",
    config=MlpConfig,
    factory="janus_plugins.adapters.mlp.model:build",
    contract=1,
    summary="MLP from features or latents to the language model's width",
)
