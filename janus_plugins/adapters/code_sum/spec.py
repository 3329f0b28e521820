"""Declare `code-sum`: the generation adapter of several codebooks, one table each, summed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from janus_plugins.core.errors import WiringError
from janus_plugins.core.facts import AdapterFacts, GenerationFacts, LanguageModelFacts, UnderstandingFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import ComponentConfig, ComponentSpec


class CodeSumConfig(ComponentConfig):
    """Set the tables of code vectors and the MLP behind their sum."""

    depth: Annotated[int, Field(ge=1)] = Field(default=2, description="linear layers, GELU between them")
    init_table: Literal["codebook", "random"] = Field(
        default="codebook", description="start from the encoder's codebooks, in proportion, or at random"
    )

    def facts(self, *neighbours: UnderstandingFacts | GenerationFacts | LanguageModelFacts) -> AdapterFacts:
        """Answer for `facts(source, model)`: a table for each of the encoder's codebooks.

        Raises:
            WiringError: the encoder has one codebook, or none.
        """
        source, model = neighbours
        if not isinstance(source, GenerationFacts) or source.codebook_size is None or source.codebooks == 1:
            raise WiringError(
                "the adapter code-sum sums the codes of several codebooks, and its encoder has "
                f"{'one' if getattr(source, 'codebook_size', None) else 'none'}; name another adapter, such "
                "as code-mlp for one codebook"
            )
        assert isinstance(model, LanguageModelFacts)
        return AdapterFacts(
            accepts="codes",
            in_width=source.width,
            out_width=model.width,
            codebook_size=source.codebook_size,
            codebooks=source.codebooks,
        )


CODE_SUM = ComponentSpec(
    kind=Kind.ADAPTER,
    name="code-sum",
    config=CodeSumConfig,
    factory="janus_plugins.adapters.code_sum.model:build",
    contract=1,
    summary="a table of code vectors for each of several codebooks, summed, then an MLP",
)
