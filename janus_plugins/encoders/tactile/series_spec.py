"""Declare `tactile-series`: readings of a force, torque or taxel sensor over time."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from janus_plugins.core.facts import UnderstandingFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import ComponentConfig, ComponentSpec

Count = Annotated[int, Field(ge=1)]


class TactileSeriesConfig(ComponentConfig):
    """Set what a sensor gives, and the sizes of the transformer over patches of time."""

    channels: Count = Field(default=6, description="readings at a time (force and torque: 6)")
    patch: Count = Field(default=16, description="times that become one feature")
    max_steps: Count = Field(default=4096, description="longest series")
    too_long: Literal["refuse", "cut"] = "refuse"
    rest: Annotated[int, Field(ge=0)] = Field(
        default=1,
        description="times at the beginning whose mean is what no touch reads; 0: none is taken off",
    )
    scale: Annotated[float, Field(gt=0)] = Field(default=1.0, description="divides the readings")
    width: Count = 256
    depth: Count = 6
    num_heads: Count = 4
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0

    @model_validator(mode="after")
    def _sizes_fit(self) -> TactileSeriesConfig:
        if self.width % self.num_heads or self.width % 2:
            raise ValueError(f"width {self.width} must be even and a multiple of num_heads {self.num_heads}")
        return self

    @staticmethod
    def tiny() -> dict[str, Any]:
        """Return options small enough for a test."""
        return {"channels": 3, "patch": 4, "max_steps": 64, "width": 16, "depth": 2, "num_heads": 2}

    def num_features(self, steps: int) -> int:
        """Return the features of a series: one for each patch that has begun."""
        return -(-steps // self.patch)

    def facts(self, *neighbours: object) -> UnderstandingFacts:
        """Answer as many features as the series is long."""
        most = self.num_features(self.max_steps)
        return UnderstandingFacts(modality="tactile", width=self.width, tokens=None, max_tokens=most)


TACTILE_SERIES = ComponentSpec(
    kind=Kind.UNDERSTANDING_ENCODER,
    name="tactile-series",
    config=TactileSeriesConfig,
    factory="janus_plugins.encoders.tactile.series_model:build",
    contract=1,
    processor="janus_plugins.encoders.tactile.series_processor:TactileSeriesProcessor",
    summary="readings of a touch sensor over time (.npy, .csv, arrays) -> features over time",
    requires=("timm",),
)
