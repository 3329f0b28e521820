"""Declare `code-mlp`: the generation adapter that owns the table from code id to vector."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from janus_plugins.core.facts import AdapterFacts, GenerationFacts, LanguageModelFacts, UnderstandingFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import ComponentConfig, ComponentSpec


class CodeMlpConfig(ComponentConfig):
    """Set the code table (Janus's `gen_embed`) and the MLP behind it (`gen_aligner`)."""

    depth: Annotated[int, Field(ge=1)] = Field(default=2, description="linear layers, GELU between them")
    init_table: Literal["codebook", "random"] = Field(
        default="codebook", description="start from the encoder's normalised codebook, or at random"
    )

    def facts(self, *neighbours: UnderstandingFacts | GenerationFacts | LanguageModelFacts) -> AdapterFacts:
        """Answer for `facts(source, model)`: one table row for each code of the encoder."""
        source, model = neighbours
        size = source.codebook_size if isinstance(source, GenerationFacts) else None
        return AdapterFacts(accepts="codes", in_width=source.width, out_width=model.width, codebook_size=size)


CODE_MLP_ADAPTER = ComponentSpec(
    kind=Kind.ADAPTER,
    name="code-mlp",
    config=CodeMlpConfig,
    factory="janus_plugins.adapters.code_mlp.model:build",
    contract=1,
    summary="table of code vectors, then an MLP to the language model's width",
)
