"""Declare `code-mlp`: the head over a codebook (Janus's `gen_head`)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from janus_plugins.core.errors import WiringError
from janus_plugins.core.facts import GenerationFacts, HeadFacts, LanguageModelFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import ComponentConfig, ComponentSpec


class CodeHeadConfig(ComponentConfig):
    """Set the code head."""

    width: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="width of the hidden layer (default: the language model's)"
    )
    chunk: Annotated[int, Field(ge=1)] = Field(
        default=8192, description="positions whose logits exist at the same time in training"
    )
    top_k: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="sample among the k likeliest codes only"
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="sample among the likeliest codes that make up this share only"
    )

    def facts(self, *neighbours: GenerationFacts | LanguageModelFacts | None) -> HeadFacts:
        """Answer for `facts(target, model)`: one class for each code of the encoder."""
        target, model = neighbours
        if not isinstance(target, GenerationFacts) or target.codebook_size is None:
            made = "text" if target is None else f"latents of width {target.width}"
            raise WiringError(
                f"the head code-mlp chooses among codes, but it is asked to predict {made}; "
                "name another head, or a generation encoder with a codebook"
            )
        assert isinstance(model, LanguageModelFacts)
        return HeadFacts(predicts="codes", in_width=model.width, size=target.codebook_size)


CODE_MLP_HEAD = ComponentSpec(
    kind=Kind.HEAD,
    name="code-mlp",
    config=CodeHeadConfig,
    factory="janus_plugins.heads.code_mlp.model:build",
    contract=1,
    summary="two-layer MLP over the codes of a generation encoder",
)
