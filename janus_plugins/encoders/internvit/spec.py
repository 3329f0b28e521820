"""Declare `internvit`: the vision transformer of InternVL, as transformers builds it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from janus_plugins.core.facts import UnderstandingFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import ComponentConfig, ComponentSpec
from janus_plugins.core.tiles import GREY, check_fitting, most_tiles

Count = Annotated[int, Field(ge=1)]


class Size(NamedTuple):
    """Hold what a size's name stands for (config.json of OpenGVLab's InternViT repositories)."""

    width: int
    depth: int
    heads: int
    mlp_width: int
    norm: str
    qk_norm: bool
    qkv_bias: bool


SIZES = {
    "300m": Size(1024, 24, 16, 4096, "layer_norm", False, True),
    "6b": Size(3200, 45, 25, 12800, "rms_norm", True, False),
}


class InternVitConfig(ComponentConfig):
    """Choose an InternViT. The default is InternViT-300M at 448 pixels: 1,024 features of width 1024.

    Weights: in the layout of transformers (a vision model, or a whole InternVL), of timm
    (vit_intern300m_patch14_448) or of OpenGVLab's own repositories, which needs no remote code.
    """

    size: Literal["300m", "6b"] = "300m"
    image_size: Count = Field(default=448, description="side of the picture, or of a tile, in pixels")
    patch_size: Count = 14
    width: Count | None = None
    depth: Count | None = None
    num_heads: Count | None = None
    mlp_width: Count | None = None
    max_tiles: Count = Field(default=1, description="most tiles of a large picture (InternVL 1.5: 12)")
    thumbnail: bool = Field(default=True, description="add the whole picture, small, after its tiles")
    channels: Literal[1, 3] = Field(default=3, description="1: grey, 3: RGB")
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    fit: Literal["pad", "crop"] = Field(default="pad", description="of a picture that is not cut into tiles")
    background: tuple[int, int, int] = Field(default=GREY, description="colour of the padding")
    rotate: bool = Field(default=False, description="apply the EXIF orientation")

    @model_validator(mode="after")
    def _sizes_fit(self) -> InternVitConfig:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )
        if self.sizes.width % self.sizes.heads:
            raise ValueError(f"width {self.sizes.width} is not a multiple of num_heads {self.sizes.heads}")
        check_fitting(self.max_tiles, self.fit, self.background)
        return self

    @staticmethod
    def tiny() -> dict[str, Any]:
        """Return options small enough for a test."""
        sizes = {"width": 16, "depth": 2, "num_heads": 2, "mlp_width": 32}
        return {"image_size": 16, "patch_size": 4, **sizes}

    @property
    def sizes(self) -> Size:
        """Return the sizes, the options' in place of the name's."""
        own: dict[str, Any] = {
            "width": self.width,
            "depth": self.depth,
            "heads": self.num_heads,
            "mlp_width": self.mlp_width,
        }
        return SIZES[self.size]._replace(**{name: each for name, each in own.items() if each is not None})

    @property
    def side(self) -> int:
        """Return features along each axis of a tile."""
        return self.image_size // self.patch_size

    def facts(self, *neighbours: object) -> UnderstandingFacts:
        """Answer one feature for each patch of each tile; the class token is left out."""
        most = self.side**2 * most_tiles(self.max_tiles, self.thumbnail)
        return UnderstandingFacts(
            modality="image",
            width=self.sizes.width,
            tokens=most if self.max_tiles == 1 else None,
            max_tokens=most,
        )


INTERNVIT = ComponentSpec(
    kind=Kind.UNDERSTANDING_ENCODER,
    name="internvit",
    config=InternVitConfig,
    factory="janus_plugins.encoders.internvit.model:build",
    contract=1,
    processor="janus_plugins.encoders.internvit.processor:InternVitProcessor",
    summary="InternViT of InternVL (300M, 6B): picture, or its tiles -> patch features",
    requires=("transformers",),
)
