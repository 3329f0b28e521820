"""Tokens as grids: for adapters that merge neighbours in a picture, tile by tile. torch is not imported."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from janus_plugins.core.errors import WiringError
from janus_plugins.core.facts import GenerationFacts, UnderstandingFacts

if TYPE_CHECKING:
    from torch import Tensor

Grid = tuple[int, int]


def check_features(source: UnderstandingFacts | GenerationFacts, name: str) -> UnderstandingFacts:
    """Return the facts of an understanding encoder; what is generated keeps one slot a token.

    Raises:
        WiringError: the adapter changes how many tokens there are, and stands on a generation path.
    """
    if isinstance(source, UnderstandingFacts):
        return source
    raise WiringError(
        f"adapter {name!r} changes how many tokens there are, but each of the {source.tokens} {source.form} "
        "of a generated item needs its own slot; use it on an understanding path"
    )


def check_grid(source: UnderstandingFacts, grid: Grid | None, factor: int, name: str) -> None:
    """Refuse an encoder whose tokens do not lie in a grid that divides by `factor`.

    Raises:
        WiringError: with both numbers and the next step.
    """
    if grid is None and source.tokens is None:
        raise WiringError(
            f"adapter {name!r} needs to know how tokens lie, but the encoder makes up to "
            f"{source.max_tokens} of them, as the item decides; set grid: [rows, columns] of one tile"
        )
    rows, columns = grid or square(source.max_tokens, name)
    if rows % factor or columns % factor:
        raise WiringError(
            f"adapter {name!r} merges {factor} x {factor} tokens, but the encoder's lie in "
            f"{rows} x {columns}; change the factor, or the encoder's picture size"
        )
    if source.max_tokens % (rows * columns):
        raise WiringError(
            f"adapter {name!r}: grid {rows} x {columns} is {rows * columns} tokens, but the encoder makes "
            f"{source.max_tokens} of an item, which is no multiple of it; correct the grid"
        )


def square(tokens: int, name: str) -> Grid:
    """Return the square grid of a number of tokens.

    Raises:
        WiringError: it is no square.
    """
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise WiringError(f"adapter {name!r}: {tokens} tokens are no square; set grid: [rows, columns]")
    return side, side


def to_grid(features: Tensor, grid: Grid | None, name: str) -> Tensor:
    """Return features [N, tiles * rows * columns, C] as [N * tiles, rows, columns, C].

    Raises:
        WiringError: the tokens do not fill whole grids.
    """
    tokens = features.shape[1]
    rows, columns = grid or square(tokens, name)
    if tokens % (rows * columns):
        raise WiringError(f"adapter {name!r}: {tokens} tokens do not fill grids of {rows} x {columns}")
    tiles = tokens // (rows * columns)
    return features.reshape(len(features) * tiles, rows, columns, features.shape[2])
