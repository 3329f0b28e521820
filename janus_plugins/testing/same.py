"""Compare and copy plain values, arrays, pictures and samples."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np


def same(one: Any, other: Any) -> bool:
    """Answer whether two values are equal, arrays and dataclasses compared by what they hold."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        equal_nan = one.dtype.kind == "f"
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=equal_nan)
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if is_dataclass(one):
        return all(same(getattr(one, each.name), getattr(other, each.name)) for each in fields(one))
    if hasattr(one, "__array_interface__"):
        return same(np.asarray(one), np.asarray(other))
    # Objects that only know their identity cannot be compared with a copy.
    return not _compares(one) or bool(one == other)


def copied(value: Any) -> Any:
    """Return a copy that shares nothing, or the value itself where it cannot be copied."""
    try:
        return deepcopy(value)
    except Exception:  # an open handle, say; there is then nothing to compare with
        return value


def _compares(value: object) -> bool:
    return any("__eq__" in vars(each) for each in type(value).__mro__ if each is not object)
