"""Evaluation tasks that each break one rule, and one that breaks none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


class Counting:
    def __init__(self, config: Any, facts: Any) -> None:
        pass

    def __call__(self, model: Any, source: Any, others: Mapping[str, Any]) -> dict[str, Any]:
        return {"score": len(others["reference"]) / len(source), "ceilings": {"all": 1.0}}


class Scoreless(Counting):
    def __call__(self, model: Any, source: Any, others: Any) -> dict[str, Any]:
        return {"accuracy": 1.0}


class Infinite(Counting):
    def __call__(self, model: Any, source: Any, others: Any) -> dict[str, Any]:
        return {"score": float("nan")}


class Numpy(Counting):
    def __call__(self, model: Any, source: Any, others: Any) -> dict[str, Any]:
        return {"score": 1.0, "by_sample": np.ones(3)}


class Drawing(Counting):
    def __call__(self, model: Any, source: Any, others: Any) -> dict[str, Any]:
        return {"score": float(torch.rand(()))}


class Training(Counting):
    def __call__(self, model: Any, source: Any, others: Any) -> dict[str, Any]:
        model.train()
        return super().__call__(model, source, others)


class Editing(Counting):
    def __call__(self, model: Any, source: Any, others: Any) -> dict[str, Any]:
        with torch.no_grad():
            next(model.parameters()).zero_()
        return super().__call__(model, source, others)


class Raising(Counting):
    def __call__(self, model: Any, source: Any, others: Any) -> dict[str, Any]:
        raise LookupError("no such thing")


def uncallable(config: Any, facts: Any) -> object:
    return object()
