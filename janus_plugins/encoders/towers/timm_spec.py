"""Declare `timm`: any image backbone of timm, by name, as an understanding encoder."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from janus_plugins.core.facts import UnderstandingFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import ComponentSpec
from janus_plugins.encoders.towers.options import Count, PictureConfig

Scalar = bool | int | float | str


class TimmConfig(PictureConfig):
    """Name a backbone of timm; its last features become tokens, row-major.

    The facts are measured on the meta device, for which `validate` imports timm (some seconds). With
    `image_size`, `width` and `tokens` given nothing is imported; building then checks them.
    """

    name: str = Field(description="timm's model name, e.g. vit_base_patch14_reg4_dinov2 or convnext_base")
    args: dict[str, Scalar | list[Scalar]] = Field(
        default_factory=dict, description="further arguments of timm's constructor, e.g. {depth: 4}"
    )
    keep_prefix: bool = Field(default=False, description="keep class and register tokens, before the patches")
    width: Count | None = Field(default=None, description="width of a token, to spare measuring it")
    tokens: Count | None = Field(default=None, description="tokens of a picture, to spare counting them")

    @model_validator(mode="after")
    def _all_or_none(self) -> TimmConfig:
        given = [self.width is not None, self.tokens is not None]
        if any(given) and not (all(given) and self.image_size):
            raise ValueError("give image_size, width and tokens together, or leave width and tokens out")
        return self

    @staticmethod
    def tiny() -> dict[str, Any]:
        """Return options small enough for a test."""
        args = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 4}
        return {"name": "vit_tiny_patch16_224", "image_size": 16, "args": args}

    def facts(self, *neighbours: object) -> UnderstandingFacts:
        """Answer what the options state, or measure the backbone on the meta device.

        Raises:
            RunFileError: timm has no such model, or cannot build it with these options.
        """
        width, tokens = self.width, self.tokens
        if width is None or tokens is None:
            from janus_plugins.encoders.towers.timm_trunk import measure

            width, tokens = measure(self)
        return self.seen(width, tokens)


TIMM = ComponentSpec(
    kind=Kind.UNDERSTANDING_ENCODER,
    name="timm",
    config=TimmConfig,
    factory="janus_plugins.encoders.towers.timm_trunk:build",
    contract=1,
    processor="janus_plugins.encoders.towers.processor:TimmProcessor",
    summary="any image backbone of timm, by name: picture -> its last features",
    requires=("timm",),
)
