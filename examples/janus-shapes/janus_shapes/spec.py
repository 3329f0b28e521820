from typing import Annotated, Literal

from pydantic import Field

import janus_plugins as jp

Share = Annotated[float, Field(ge=0, lt=1)]


class ShapesConfig(jp.ComponentConfig):
    split: Literal["train", "test"] = "train"
    size: Annotated[int, Field(ge=1)] = 20_000
    num_points: Annotated[int, Field(ge=32)] = Field(
        default=600, description="points before the cut, a fifth more or less"
    )
    tilt: Annotated[float, Field(ge=0, le=180)] = Field(
        default=180.0, description="largest angle from upright, in degrees; the turn is any"
    )
    noise: Annotated[float, Field(ge=0)] = Field(
        default=0.015, description="of every point; shapes are about 2 across"
    )
    outliers: Share = Field(default=0.01, description="share of points that lie anywhere")
    unseen: Share = Field(default=0.2, description="largest share of the points that a partial view lacks")
    stretch: Annotated[float, Field(ge=1)] = Field(
        default=1.3, description="largest stretch or squeeze along each axis"
    )

    def facts(self):
        return jp.SourceFacts(tasks=frozenset({"understanding"}), understanding=frozenset({"points"}))


SHAPES = jp.ComponentSpec(
    kind=jp.Kind.SOURCE, name="shapes", config=ShapesConfig, contract=1,
    factory="janus_shapes.source:Shapes", summary="made point clouds of nine shapes: turned, noisy, partial",
)  # fmt: skip


@jp.hookimpl
def janus_components():
    return [SHAPES]
