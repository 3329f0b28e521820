"""Declare `conv`: a strided convolution over a line or a grid of features, then a linear layer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from janus_plugins.core.facts import AdapterFacts, GenerationFacts, LanguageModelFacts, UnderstandingFacts
from janus_plugins.core.grids import check_features, check_grid
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import ComponentConfig, ComponentSpec

Count = Annotated[int, Field(ge=1)]


class ConvConfig(ComponentConfig):
    """Set how features are down-sampled: along time (`dims: 1`), or in a picture's grid (`dims: 2`).

    Along time a window ends at its last feature and reaches back; an incomplete window at the end of
    an item is dropped. An item shorter than the factor still gives one token. What pads an item in a
    batch is never seen.
    """

    dims: Literal[1, 2] = 1
    factor: Annotated[int, Field(ge=2)] = Field(default=2, description="stride, on each axis")
    kernel: Count | None = Field(default=None, description="features a window sees (default: the factor)")
    width: Count | None = Field(default=None, description="channels inside (default: the language model's)")
    grid: tuple[Count, Count] | None = Field(
        default=None, description="rows and columns of one picture's, or tile's, features (default: a square)"
    )

    @model_validator(mode="after")
    def _window_fits(self) -> ConvConfig:
        spare = self.window - self.factor
        if spare < 0:
            raise ValueError(
                f"kernel {self.window} is smaller than factor {self.factor}: features are skipped"
            )
        if self.dims == 2 and spare % 2:
            raise ValueError(f"kernel {self.window} and factor {self.factor} must differ by an even number")
        if self.dims == 1 and self.grid is not None:
            raise ValueError("grid is for dims: 2")
        return self

    @property
    def window(self) -> int:
        """Return how many features a window sees on each axis."""
        return self.kernel or self.factor

    def facts(self, *neighbours: UnderstandingFacts | GenerationFacts | LanguageModelFacts) -> AdapterFacts:
        """Answer for `facts(source, model)`.

        Raises:
            WiringError: the features do not lie in a grid that divides by the factor.
        """
        source, model = neighbours
        seen = check_features(source, "conv")  # type: ignore[arg-type]
        if self.dims == 2:
            check_grid(seen, self.grid, self.factor, "conv")
        return AdapterFacts(accepts="features", in_width=source.width, out_width=model.width)

    def output_tokens(self, tokens: int) -> int:
        """Answer one token for each window."""
        if self.dims == 2:
            return tokens // self.factor**2
        return max(tokens // self.factor, min(tokens, 1))


CONV = ComponentSpec(
    kind=Kind.ADAPTER,
    name="conv",
    config=ConvConfig,
    factory="janus_plugins.adapters.conv.model:build",
    contract=1,
    summary="down-sampling by a strided convolution, over time or in a picture's grid",
)
