"""Processors that each break one rule."""

from __future__ import annotations

from typing import Any

import numpy as np

from .spec import LENGTH, Signals


class WithLambda(Signals):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.scale = lambda array: array


class Drawing(Signals):
    def __call__(self, value: object) -> dict[str, np.ndarray]:
        made = super().__call__(value)
        return {"signal": made["signal"] + np.random.normal(size=LENGTH).astype(np.float32)}


class Counting(Signals):
    """Answers by how many items this process has seen."""

    seen = 0

    def __call__(self, value: object) -> dict[str, np.ndarray]:
        made = super().__call__(value)
        Counting.seen += 1
        return {"signal": made["signal"] + np.float32(Counting.seen)}


class Seeding(Signals):
    """Seeds everybody's generator, so that it draws the same each time."""

    def __call__(self, value: object) -> dict[str, np.ndarray]:
        np.random.seed(0)
        return super().__call__(value)


class EditingItem(Signals):
    def __call__(self, value: Any) -> dict[str, np.ndarray]:
        made = super().__call__(value)
        value -= value.mean()
        return made


class Credulous(Signals):
    def __call__(self, value: object) -> dict[str, np.ndarray]:
        try:
            return super().__call__(value)
        except Exception:
            return self.dummy()


class OtherDummy(Signals):
    def dummy(self) -> dict[str, np.ndarray]:
        return {"silence": np.zeros(LENGTH, np.float32)}


class NanDummy(Signals):
    def dummy(self) -> dict[str, np.ndarray]:
        return {"signal": np.full(LENGTH, np.nan, np.float32)}


class Miscounting(Signals):
    def num_tokens(self, arrays: dict[str, np.ndarray]) -> int:
        return 2


class Unwritable(Signals):
    def write(self, artefact: str, path: str, metadata: dict[str, str]) -> None:
        pass
