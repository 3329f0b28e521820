"""Products of a few rows with weights of one input (`products.h`), on a CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from janus_plugins.core.native.build import library

if TYPE_CHECKING:
    from torch import Tensor

FEW_ROWS = 32
"""Rows up to which these products are quicker than a library's, which is made for many."""

KINDS = {"torch.float32": 0, "torch.bfloat16": 1, "torch.int8": 2}
"""Number formats of weights, and what the C code calls them."""


class Weight(NamedTuple):
    """Say what rows are multiplied by; all of it is contiguous and on the CPU.

    Attributes:
        numbers: [N, K], fp32, bf16 or int8.
        bias: [N] fp32, or None.
        scales: of each output, in 8 bits [N] fp32; else None.
    """

    numbers: Tensor
    bias: Tensor | None = None
    scales: Tensor | None = None

    def fits(self) -> bool:
        """Answer whether the C code can read it."""
        import torch

        others = [each for each in (self.bias, self.scales) if each is not None]
        known = str(self.numbers.dtype) in KINDS and all(each.dtype == torch.float32 for each in others)
        return known and all(
            each.is_contiguous() and each.device.type == "cpu" and type(each.data) is torch.Tensor
            for each in (self.numbers, *others)
        )


class InC(ctypes.Structure):
    """Mirror `Weight` of `products.h`."""

    _fields_ = (
        ("numbers", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("kind", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
    )

    @classmethod
    def of(cls, weight: Weight) -> InC:
        """Return a weight as C sees it; whoever holds this must hold the tensors, too."""
        outputs, inputs = weight.numbers.shape
        places = map(_place, (weight.numbers, weight.scales, weight.bias))
        return cls(*places, KINDS[str(weight.numbers.dtype)], outputs, inputs)


def _place(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class Products:
    """Multiply rows [..., K] by weights of one input, outputs side by side [..., N].

    Args:
        weights: such as fit.
    """

    def __init__(self, weights: Sequence[Weight], multiply: ctypes._NamedFuncPointer) -> None:
        self.weights = tuple(weights)
        self._multiply = multiply
        self._in_c = (InC * len(weights))(*map(InC.of, weights))
        self._outputs = sum(len(weight.numbers) for weight in weights)
        self.inputs = weights[0].numbers.shape[1]

    @classmethod
    def of(cls, weights: Sequence[Weight]) -> Products | None:
        """Return the products, or None where this machine or these weights cannot have them."""
        if not all(weight.fits() for weight in weights):
            return None
        made = library(Path(__file__).with_suffix(".c"))
        if made is None:
            return None
        multiply = made.multiply
        multiply.restype = None
        place, number = ctypes.c_void_p, ctypes.c_int64
        multiply.argtypes = (place, number, place, number, place, number, number)
        return cls(weights, multiply)

    def takes(self, source: Tensor) -> bool:
        """Answer whether rows are few, as wide as the weights' inputs, and on the CPU."""
        width = source.shape[-1]
        return width == self.inputs and source.numel() <= FEW_ROWS * width and source.device.type == "cpu"

    def __call__(self, source: Tensor) -> Tensor:
        """Return the products of rows that it takes, in their format; they are summed up in fp32."""
        import torch

        rows = source.float().contiguous()
        made = torch.empty((*source.shape[:-1], self._outputs), dtype=torch.float32)
        self._multiply(
            rows.data_ptr(),
            rows.numel() // rows.shape[-1],
            self._in_c,
            len(self._in_c),
            made.data_ptr(),
            self._outputs,
            torch.get_num_threads(),
        )
        return made.to(source.dtype)
