"""Declare `vae`: a picture tokenizer without a codebook, whose latents are real numbers (KL autoencoder)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from janus_plugins.core.facts import GenerationFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import ComponentConfig, ComponentSpec

Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0)]


class VaeLossWeights(ComponentConfig):
    """Weigh the terms of the reconstruction loss."""

    l1: Weight = 1.0
    l2: Weight = 0.0
    kl: Weight = Field(
        default=1e-6, description="pull of the latents to a normal; both sums are taken over a picture"
    )


class VaeConfig(ComponentConfig):
    """Set the sizes of the tokenizer. The defaults are MAR's KL-16 at 256 pixels: 256 latents of width 16.

    Weights: diffusers' `AutoencoderKL`, a folder, a file or a hub id (xwen99/mar-vae-kl16), or a file of the
    original code (MAR's kl16.ckpt). Stable Diffusion's: `channels: [128, 256, 512, 512]`,
    `latent_channels: 4` (XL too; 16 in version 3, without `quant_conv`), `attend_encoder: false`, `patch: 2`.
    """

    image_size: Count = 256
    in_channels: Literal[1, 3] = Field(default=3, description="1: grey, 3: RGB")
    channels: tuple[Count, ...] = Field(
        default=(128, 128, 256, 256, 512), min_length=1, description="channels by level, halving in between"
    )
    attend_encoder: bool = Field(default=True, description="attention in the encoder's lowest level")
    attend_decoder: bool = Field(default=False, description="attention in the decoder's lowest level")
    num_res_blocks: Count = Field(default=2, description="residual blocks of a level (decoder: one more)")
    norm_groups: Count = Field(default=32, description="groups of GroupNorm")
    latent_channels: Count = 16
    quant_conv: bool = Field(default=True, description="1 x 1 convolutions on both sides of the latents")
    patch: Count = Field(default=1, description="side of the square of places that makes one latent")
    latents: Literal["mean", "sample"] = Field(
        default="mean",
        description="sample: drawn around the mean, by the picture's own content (the same each time)",
    )
    scale: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="what latents are multiplied with (default: as the weights' config.json says; measured "
        "while it learns by reconstruction)",
    )
    shift: float = Field(default=0.0, description="what is subtracted from latents before that; needs scale")
    loss: VaeLossWeights = Field(default_factory=VaeLossWeights)
    crop: Literal["center", "random"] = Field(
        default="center", description="part of the long side that is kept; random: chosen by the content"
    )
    rotate: bool = Field(default=False, description="apply the EXIF orientation")

    @model_validator(mode="after")
    def _sizes_fit(self) -> VaeConfig:
        step = self.downsample * self.patch
        if self.image_size % step:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of {step}: the downsampling of "
                f"{len(self.channels)} levels ({self.downsample}) times patch {self.patch}"
            )
        for width in sorted(set(self.channels)):
            if width % self.norm_groups:
                raise ValueError(f"{width} channels do not divide into norm_groups {self.norm_groups}")
        if self.shift and self.scale is None:
            raise ValueError(f"shift is {self.shift}, but scale is not given; give both or neither")
        return self

    @staticmethod
    def tiny() -> dict[str, Any]:
        """Return options small enough for a test."""
        sizes = {"channels": (8, 8), "num_res_blocks": 1, "norm_groups": 4, "latent_channels": 4}
        return {"image_size": 8, "patch": 2, **sizes}

    @property
    def downsample(self) -> int:
        """Return how many pixels one place of the latents spans on each axis."""
        return int(2 ** (len(self.channels) - 1))

    @property
    def side(self) -> int:
        """Return latents along each axis of the picture."""
        return self.image_size // (self.downsample * self.patch)

    def facts(self, *neighbours: object) -> GenerationFacts:
        """Answer a square grid of latents."""
        return GenerationFacts(
            modality="image",
            form="latents",
            tokens=self.side**2,
            width=self.latent_channels * self.patch**2,
            codebook_size=None,
            grid=(self.side, self.side),
        )


VAE = ComponentSpec(
    kind=Kind.GENERATION_ENCODER,
    name="vae",
    config=VaeConfig,
    factory="janus_plugins.encoders.vae.model:build",
    contract=1,
    processor="janus_plugins.encoders.vae.processor:VaeProcessor",
    summary="KL autoencoder (diffusers; Stable Diffusion, MAR's KL-16): picture <-> continuous latents",
    requires=("diffusers",),
    extra="janus-plugins[diffusers]",
)
