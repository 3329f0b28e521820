"""Declare `pixel-shuffle`: squares of neighbouring features become one token, then an MLP."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from janus_plugins.core.facts import AdapterFacts, GenerationFacts, LanguageModelFacts, UnderstandingFacts
from janus_plugins.core.grids import check_features, check_grid
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import ComponentConfig, ComponentSpec

Count = Annotated[int, Field(ge=1)]


class PixelShuffleConfig(ComponentConfig):
    """Set how many features become one. The defaults are InternVL's: 2 x 2, so a quarter of the tokens."""

    factor: Annotated[int, Field(ge=2)] = Field(
        default=2, description="side of the square of features that becomes one token"
    )
    grid: tuple[Count, Count] | None = Field(
        default=None, description="rows and columns of one picture's, or tile's, features (default: a square)"
    )
    width: Count | None = Field(
        default=None, description="width of the hidden layer (default: the language model's)"
    )

    def facts(self, *neighbours: UnderstandingFacts | GenerationFacts | LanguageModelFacts) -> AdapterFacts:
        """Answer for `facts(source, model)`.

        Raises:
            WiringError: the features do not lie in a grid that divides by the factor.
        """
        source, model = neighbours
        seen = check_features(source, "pixel-shuffle")  # type: ignore[arg-type]
        check_grid(seen, self.grid, self.factor, "pixel-shuffle")
        return AdapterFacts(accepts="features", in_width=source.width, out_width=model.width)

    def output_tokens(self, tokens: int) -> int:
        """Answer one token for each square of features."""
        return tokens // self.factor**2


PIXEL_SHUFFLE = ComponentSpec(
    kind=Kind.ADAPTER,
    name="pixel-shuffle",
    config=PixelShuffleConfig,
    factory="janus_plugins.adapters.pixel_shuffle.model:build",
    contract=1,
    summary="token compression: squares of features side by side as one, then an MLP (InternVL)",
)
