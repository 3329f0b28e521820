"""Declare `diffusion`: a head over continuous latents, by a small denoising network (MAR's)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from janus_plugins.core.errors import WiringError
from janus_plugins.core.facts import GenerationFacts, HeadFacts, LanguageModelFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import ComponentConfig, ComponentSpec

Count = Annotated[int, Field(ge=1)]


class DiffusionConfig(ComponentConfig):
    """Set the denoising network and the process. The defaults are MAR's (3 blocks of width 1024)."""

    width: Count = Field(default=1024, description="channels of the network")
    depth: Count = Field(default=3, description="its residual blocks")
    objective: Literal["diffusion", "flow"] = Field(
        default="diffusion",
        description="diffusion: predict the noise (cosine schedule); flow: predict the way from noise to "
        "latent (rectified flow)",
    )
    learn_variance: bool = Field(
        default=True, description="diffusion: learn the variance of a step too, as MAR's code does"
    )
    repeats: Count = Field(
        default=4, description="times and noises of a position in one step (MAR: diffusion_batch_mul)"
    )
    train_steps: Annotated[int, Field(ge=10)] = Field(
        default=1000, description="steps of the process in training"
    )
    sample_steps: Annotated[int, Field(ge=2)] = Field(
        default=100, description="steps that make a latent, evenly spaced among those of training"
    )

    @model_validator(mode="after")
    def _steps_fit(self) -> DiffusionConfig:
        if self.objective == "diffusion" and self.sample_steps > self.train_steps:
            raise ValueError(f"sample_steps is {self.sample_steps}, but train_steps is {self.train_steps}")
        return self

    @staticmethod
    def tiny() -> dict[str, Any]:
        """Return options small enough for a test."""
        return {"width": 32, "depth": 2, "sample_steps": 10}

    def facts(self, *neighbours: GenerationFacts | LanguageModelFacts | None) -> HeadFacts:
        """Answer for `facts(target, model)`: a latent of the encoder's width."""
        target, model = neighbours
        if not isinstance(target, GenerationFacts) or target.form != "latents":
            made = "text" if target is None else "codes"
            raise WiringError(
                f"the head diffusion makes latents, but it is asked to predict {made}; name another head "
                "(code-mlp for codes), or a generation encoder with latents (vae)"
            )
        assert isinstance(model, LanguageModelFacts)
        return HeadFacts(predicts="latents", in_width=model.width, size=target.width)


DIFFUSION = ComponentSpec(
    kind=Kind.HEAD,
    name="diffusion",
    config=DiffusionConfig,
    factory="janus_plugins.heads.diffusion.model:build",
    contract=1,
    summary="small diffusion (or flow) network over the latents of a generation encoder (MAR)",
)
