"""Declare `semantic-vq`: a VQ tokenizer whose codes also carry meaning, for both paths or for one.

Source: Janus, appendix A: LlamaGen's VQ with a second decoder, a causal ViT that learns SigLIP's features.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from janus_plugins.core.facts import UnderstandingFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import ComponentConfig, ComponentSpec
from janus_plugins.encoders.vq.spec import Count, LossWeights, VqConfig, Weight


class SemanticLossWeights(LossWeights):
    """Weigh the terms of the loss. Source: Janus, appendix A; the rest LlamaGen, `vq_train.py`."""

    semantic: Weight = Field(default=0.25, description="cosine distance to the teacher's features")
    perceptual: Weight = 1.0
    adversarial: Weight = Field(default=0.5, description="what the discriminator finds wrong in pictures")
    discriminator: Weight = Field(default=0.5, description="the discriminator's own hinge loss")


class SemanticDecoderConfig(ComponentConfig):
    """Set the sizes of the causal ViT that reads the codes."""

    width: Count = 768
    depth: Count = 12
    num_heads: Count = 12
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0

    @model_validator(mode="after")
    def _heads_fit(self) -> SemanticDecoderConfig:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        return self


class TeacherConfig(ComponentConfig):
    """Choose the frozen vision transformer whose features the semantic decoder learns; built in training."""

    name: str = Field(default="vit_large_patch16_siglip_384", description="timm's model name")
    patch_size: Count = 16
    embed_dim: Count = 1024
    depth: Count = 24
    num_heads: Count = 16
    weights: str | None = Field(
        default="timm/vit_large_patch16_siglip_384.webli",
        description="a file, a folder or a hub id in timm's layout; null: random, for tests",
    )


class DiscriminatorConfig(ComponentConfig):
    """Set the PatchGAN discriminator. Source: LlamaGen, `tokenizer/tokenizer_image/discriminator.py`."""

    channels: Count = Field(default=64, description="channels of the first layer, doubling up to 8 times")
    layers: Count = Field(default=3, description="layers that halve the picture")
    start: Annotated[int, Field(ge=0)] = Field(
        default=20_000, description="training steps before its losses count"
    )


class SemanticVqConfig(VqConfig):
    """Set the sizes of the semantic tokenizer. The defaults are appendix A's over VQ-16 at 384 pixels."""

    semantic: SemanticDecoderConfig = Field(default_factory=SemanticDecoderConfig)
    teacher: TeacherConfig | None = Field(
        default_factory=TeacherConfig, description="null where the tokenizer is used, not trained"
    )
    discriminator: DiscriminatorConfig | None = Field(
        default_factory=DiscriminatorConfig, description="null: train without, or use"
    )
    perceptual_weights: str | None = Field(
        default=None, description="torchvision's VGG-16 weights, a file; without it no perceptual loss"
    )
    loss: SemanticLossWeights = Field(default_factory=SemanticLossWeights)

    @model_validator(mode="after")
    def _patches_fit(self) -> SemanticVqConfig:
        if self.discriminator and self.image_size >> self.discriminator.layers < 3:
            raise ValueError(
                f"discriminator.layers {self.discriminator.layers} leave {self.image_size} pixels fewer than "
                "3 on a side; take fewer layers"
            )
        return self

    def feature_facts(self) -> UnderstandingFacts:
        """Answer one feature of the semantic decoder for each code."""
        count = self.side**2
        return UnderstandingFacts(modality="image", width=self.semantic.width, tokens=count, max_tokens=count)


class SemanticReaderConfig(SemanticVqConfig):
    """Read pictures with the semantic tokenizer, without its way back to pixels."""

    def facts(self, *neighbours: object) -> Any:
        """Answer one feature of the semantic decoder for each code."""
        return self.feature_facts()


SEMANTIC_VQ = ComponentSpec(
    kind=Kind.GENERATION_ENCODER,
    name="semantic-vq",
    config=SemanticVqConfig,
    factory="janus_plugins.encoders.vq.semantic_model:build",
    contract=1,
    processor="janus_plugins.encoders.vq.processor:VqProcessor",
    summary="VQ picture tokenizer with a semantic decoder (Janus, appendix A): picture <-> codes, features",
    requires=("timm",),
)
SEMANTIC_READER = ComponentSpec(
    kind=Kind.UNDERSTANDING_ENCODER,
    name="semantic-vq",
    config=SemanticReaderConfig,
    factory="janus_plugins.encoders.vq.semantic_model:build_reader",
    contract=1,
    processor="janus_plugins.encoders.vq.processor:VqProcessor",
    summary="the semantic tokenizer for understanding alone: picture -> features of its codes",
    requires=("timm",),
)
