"""Where the codes of a generated item lie when several are predicted at once. Pure functions, in numpy.

An item's slots are its first codes, `size - 1` start embeddings, and the other codes, in blocks of `size`.
The slots of a block see one another and everything before, and predict the next block, each slot one code;
the begin token (or the last code that is predicted alone) and the start embeddings are the block before the
first. With `size` 1 this is plain next-code prediction. Source of blocks, start embeddings, codes that are
predicted alone and regions: PAR (Wang et al. 2024, arXiv 2412.15119, section 3).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from janus_plugins.core.schema import ParallelBlock

    Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Blocks:
    """Say how many of an item's codes are predicted at once.

    Attributes:
        size: codes of a block.
        alone: codes before the first block, each predicted alone; a multiple of `size`.
    """

    size: int = 1
    alone: int = 0

    @staticmethod
    def of(parallel: ParallelBlock | None) -> Blocks:
        """Return what a generation path's `parallel` asks for."""
        if parallel is None or parallel.block == 1:
            return Blocks()
        return Blocks(parallel.block, parallel.sequential * parallel.block)

    def code_slots(self, slots: int) -> Ids:
        """Return where the codes lie among an item's slots, counted from its first slot [T]."""
        at = np.arange(slots)
        return at[(at < self.alone) | (at >= self.alone + self.size - 1)]

    def predict_slots(self, slots: int) -> Ids:
        """Return the slot that predicts each code, counted as those; -1 is the begin token [T]."""
        at = self.code_slots(slots)
        return at - np.where(at < self.alone, 1, self.size)

    def reach(self, slots: int) -> Ids:
        """Return the last slot that each slot sees, the begin token's first [1 + slots].

        All are counted from the begin token.
        """
        at = np.arange(slots + 1)
        ends = self.alone + ((at - self.alone) // self.size + 1) * self.size - 1
        return np.where(at < self.alone, at, ends)

    def passes(self, tokens: int) -> list[int]:
        """Return how many codes each pass of the language model predicts, in order; their sum is `tokens`."""
        return [1] * self.alone + [self.size] * ((tokens - self.alone) // self.size)


PLAIN = Blocks()
"""Next-code prediction."""


def code_order(grid: tuple[int, ...], parallel: ParallelBlock | None) -> Ids:
    """Return the place in the grid (row-major) of each code of the line [T]: line = codes[order].

    In "rows" the line is the grid's own order. In "regions" the grid is cut into as many equal regions as a
    block has codes, and a block takes the same place of each region: its codes lie far apart.

    Args:
        grid: how an item's codes lie.
        parallel: the path's `parallel`; the codes are a multiple of its block.
    """
    places = np.arange(math.prod(grid))
    if parallel is None or parallel.order == "rows":
        return places
    cuts = region_cuts(grid, parallel.block)
    shape = [side for length, cut in zip(grid, cuts, strict=True) for side in (cut, length // cut)]
    axes = [*range(1, len(shape), 2), *range(0, len(shape), 2)]  # places in a region, then regions
    return places.reshape(shape).transpose(axes).reshape(-1)


def region_cuts(grid: tuple[int, ...], number: int) -> tuple[int, ...]:
    """Return into how many parts each side of a grid is cut, so that there are `number` regions.

    Of all ways the one whose regions are most nearly as long as wide; of equals, the one that cuts the first
    sides more. There is a way wherever `number` divides the size of the grid.
    """
    divisors = [[cut for cut in range(length, 0, -1) if length % cut == 0] for length in grid]
    ways = [cuts for cuts in itertools.product(*divisors) if math.prod(cuts) == number]

    def longest(cuts: tuple[int, ...]) -> float:
        sides = [length // cut for length, cut in zip(grid, cuts, strict=True)]
        return max(sides) / min(sides)

    return min(ways, key=longest)


def line_places(order: Ids) -> Ids:
    """Return the place in the line of each code of the grid: the inverse of `code_order`."""
    return np.argsort(order, kind="stable")
