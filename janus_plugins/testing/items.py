"""Raw items to try a component on, and arrays that stand in where no raw items are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from janus_plugins.core.contracts import Arrays

NUM_ITEMS = 4


def pictures() -> list[object]:
    """Return four RGB pictures of different sizes and patterns (PIL)."""
    from PIL import Image

    draw = np.random.default_rng(7)
    sides = ((40, 40), (64, 30), (25, 50), (90, 90))
    return [Image.fromarray(draw.integers(0, 256, (*side, 3), dtype=np.uint8)) for side in sides]


def vectors() -> list[object]:
    """Return four arrays [64] (float32), for the partners' processor."""
    draw = np.random.default_rng(8)
    return [draw.normal(size=64).astype(np.float32) for _ in range(NUM_ITEMS)]


KNOWN: Mapping[str, Callable[[], list[object]]] = {"image": pictures, "thing": vectors}
"""Modalities whose raw items need no explaining."""


def stand_ins(dummy: Arrays) -> list[Arrays]:
    """Return four seeded variations of a processor's dummy: noise added to what is a float."""
    draw = np.random.default_rng(9)
    return [{name: _varied(array, draw) for name, array in dummy.items()} for _ in range(NUM_ITEMS)]


def cycled(items: Sequence[object]) -> list[object]:
    """Return four items, repeating those given where they are fewer."""
    return [items[index % len(items)] for index in range(max(NUM_ITEMS, len(items)))]


def _varied(array: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    if array.dtype.kind != "f":
        return array.copy()
    return (array + draw.normal(size=array.shape)).astype(array.dtype)
