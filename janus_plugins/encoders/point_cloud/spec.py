"""Declare `point-cloud`: a Point-BERT style encoder of points in space."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from janus_plugins.core.facts import UnderstandingFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import ComponentConfig, ComponentSpec

Count = Annotated[int, Field(ge=1)]


class PointCloudConfig(ComponentConfig):
    """Set the sizes of the encoder. The defaults are Point-BERT's: 64 groups of 32 of 1,024 points.

    Weights: Point-BERT's own names (with `norm: batch`), or this module's.
    """

    num_points: Count = Field(default=1024, description="points that are kept of a cloud or a surface")
    channels: Literal[3, 6] = Field(default=3, description="3: x, y, z; 6: with red, green, blue in [0, 1]")
    missing_colour: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None,
        description="grey of clouds without colour (OpenShape: 0.4); unset: they are bad samples",
    )
    groups: Count = Field(default=64, description="features: neighbourhoods around the farthest points")
    group_size: Count = Field(default=32, description="points of a neighbourhood")
    norm: Literal["layer", "batch"] = Field(
        default="layer",
        description="inside the small PointNet; batch: with the statistics of loaded weights, never updated",
    )
    pointnet_width: Count = Field(
        default=128,
        description="of the small PointNet's first layer; the others are twice and four times as wide",
    )
    point_width: Count = Field(default=256, description="width of a neighbourhood after the small PointNet")
    width: Count = 384
    depth: Count = 12
    num_heads: Count = 6
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0

    @model_validator(mode="after")
    def _sizes_fit(self) -> PointCloudConfig:
        most = max(self.groups, self.group_size)
        if most > self.num_points:
            raise ValueError(f"groups or group_size {most} is more than num_points {self.num_points}")
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        return self

    @staticmethod
    def tiny() -> dict[str, Any]:
        """Return options small enough for a test."""
        groups = {"num_points": 48, "groups": 6, "group_size": 8, "pointnet_width": 16, "point_width": 16}
        return {**groups, "width": 16, "depth": 2, "num_heads": 2}

    def facts(self, *neighbours: object) -> UnderstandingFacts:
        """Answer one feature for each neighbourhood; the class token is left out."""
        return UnderstandingFacts(
            modality="points", width=self.width, tokens=self.groups, max_tokens=self.groups
        )


POINT_CLOUD = ComponentSpec(
    kind=Kind.UNDERSTANDING_ENCODER,
    name="point-cloud",
    config=PointCloudConfig,
    factory="janus_plugins.encoders.point_cloud.model:build",
    contract=1,
    processor="janus_plugins.encoders.point_cloud.processor:PointCloudProcessor",
    summary="Point-BERT style encoder: .ply, .obj, .pcd, .xyz, .npy or an array -> neighbourhood features",
    requires=("timm", "trimesh"),
    extra="janus-plugins[points]",
)
