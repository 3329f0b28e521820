"""Declare `text`: the head over the vocabulary (Janus's `lm_head`)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from janus_plugins.core.facts import HeadFacts, LanguageModelFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import ComponentConfig, ComponentSpec


class TextConfig(ComponentConfig):
    """Set the text head."""

    bias: bool = Field(default=False, description="add a bias to the logits, as a few models do")
    chunk: Annotated[int, Field(ge=1)] = Field(
        default=1024, description="positions whose logits exist at the same time in training"
    )
    top_k: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="sample among the k likeliest tokens only"
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="sample among the likeliest tokens that make up this share only"
    )

    def facts(self, *neighbours: LanguageModelFacts | None) -> HeadFacts:
        """Answer for `facts(None, model)`: one class for each row of the vocabulary."""
        model = neighbours[-1]
        assert isinstance(model, LanguageModelFacts)
        return HeadFacts(predicts="text", in_width=model.width, size=model.vocab_size)


TEXT = ComponentSpec(
    kind=Kind.HEAD,
    name="text",
    config=TextConfig,
    factory="janus_plugins.heads.text.model:build",
    contract=1,
    summary="linear head over the vocabulary",
)
