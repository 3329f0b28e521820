"""Declare `depth`: a small transformer that predicts the codes of a frame one after the other."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from janus_plugins.core.errors import WiringError
from janus_plugins.core.facts import GenerationFacts, HeadFacts, LanguageModelFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import ComponentConfig, ComponentSpec

Count = Annotated[int, Field(ge=1)]


class DepthConfig(ComponentConfig):
    """Set the depth transformer. The defaults are Moshi's (2410.00037, table 1): six layers of width 1024.

    With guidance u + s (c - u) is taken of each code, the codes before it being the same for both.
    """

    width: Count = Field(default=1024, description="width of the transformer's states")
    layers: Count = 6
    num_heads: Count = 16
    feed: Count | None = Field(default=None, description="width of the hidden layer (default: 4 x width)")
    loss: Literal["sum", "mean"] = Field(
        default="sum",
        description="sum: minus the log-likelihood of a frame; mean: that of one code, as MusicGen and Moshi "
        "train, so that a frame weighs as much as a token of text",
    )
    chunk: Count = Field(
        default=8192, description="positions whose logits exist at the same time in training"
    )
    top_k: Count | None = Field(default=None, description="sample among the k likeliest codes only")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="sample among the likeliest codes that make up this share only"
    )

    @model_validator(mode="after")
    def _heads_fit(self) -> DepthConfig:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is no multiple of num_heads {self.num_heads}")
        return self

    @staticmethod
    def tiny() -> dict[str, int]:
        """Return options small enough for a test."""
        return {"width": 16, "layers": 2, "num_heads": 2}

    def facts(self, *neighbours: GenerationFacts | LanguageModelFacts | None) -> HeadFacts:
        """Answer for `facts(target, model)`: the encoder's codebooks, each with its classes.

        Raises:
            WiringError: what is to be predicted has one code a slot, or none.
        """
        target, model = neighbours
        if not isinstance(target, GenerationFacts) or target.codebook_size is None or target.codebooks == 1:
            made = "text" if target is None else f"{target.form} without several codebooks"  # type: ignore[union-attr]
            raise WiringError(
                f"the head depth predicts the several codes of a frame, but it is asked to predict {made}; "
                "name another head, such as code-mlp for one codebook"
            )
        assert isinstance(model, LanguageModelFacts)
        return HeadFacts(
            predicts="codes", in_width=model.width, size=target.codebook_size, codebooks=target.codebooks
        )


DEPTH = ComponentSpec(
    kind=Kind.HEAD,
    name="depth",
    config=DepthConfig,
    factory="janus_plugins.heads.depth.model:build",
    contract=1,
    summary="a small transformer over the codes of one frame (RQ-Transformer, Moshi)",
)
