"""The options that picture towers share: how a picture becomes pixels."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from janus_plugins.core.errors import CheckpointError
from janus_plugins.core.facts import UnderstandingFacts
from janus_plugins.core.specs import ComponentConfig
from janus_plugins.core.tiles import GREY, check_fitting, most_tiles

Count = Annotated[int, Field(ge=1)]
Colour = tuple[float, float, float]


class Colours(NamedTuple):
    """Hold what is subtracted from pixels in [0, 1], and what divides them then."""

    mean: Colour
    std: Colour


CLIP = Colours((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""OpenAI CLIP's, which EVA-CLIP and most models of open_clip keep."""


class PictureConfig(ComponentConfig):
    """Say how a picture is fitted into the square that a tower reads."""

    image_size: Count | None = Field(
        default=None, description="side of the picture in pixels (default: the name's)"
    )
    channels: Literal[1, 3] = Field(default=3, description="1: grey, 3: RGB")
    mean: Colour | None = Field(
        default=None, description="subtracted from pixels in [0, 1] (default: the name's)"
    )
    std: Colour | None = Field(default=None, description="divides them then (default: the name's)")
    max_tiles: Count = Field(
        default=1, description="most tiles that a large picture is cut into, each read by itself"
    )
    thumbnail: bool = Field(default=True, description="add the whole picture, small, after its tiles")
    fit: Literal["pad", "crop"] = Field(
        default="pad", description="pad: the whole picture, padded; crop: its middle"
    )
    background: tuple[int, int, int] = Field(default=GREY, description="colour of the padding")
    rotate: bool = Field(default=False, description="apply the EXIF orientation")

    @model_validator(mode="after")
    def _fitting_is_read(self) -> PictureConfig:
        check_fitting(self.max_tiles, self.fit, self.background)
        return self

    def colours(self, published: Colours) -> Colours:
        """Return what pictures are prepared with: the options', else what is published of the name."""
        return Colours(self.mean or published.mean, self.std or published.std)

    def check_colours(self, published: Colours, trained: Colours, source: str) -> None:
        """Refuse weights that were trained on other colours, where the options do not say both.

        Raises:
            CheckpointError: they load, and would answer wrongly.
        """
        if self.mean and self.std:
            return
        used = self.colours(published)
        if used != trained:
            raise CheckpointError(
                f"{source!r} was trained with mean {trained.mean} and std {trained.std}, but pictures come "
                f"with {used.mean} and {used.std}; set the options mean and std"
            )

    def seen(self, width: int, tokens: int) -> UnderstandingFacts:
        """Return the facts of a tower that makes `tokens` of `width` of one square."""
        most = tokens * most_tiles(self.max_tiles, self.thumbnail)
        fixed = most if self.max_tiles == 1 else None
        return UnderstandingFacts(modality="image", width=width, tokens=fixed, max_tokens=most)
