"""Products of a few rows with weights of one input (`products.h`), on a CPU."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from janus_plugins.core.native.build import library

if TYPE_CHECKING:
    from torch import Tensor, nn

FEW_ROWS = 64
"""Rows up to which these products are as quick as a library's, which is made for many, or quicker."""

KINDS = {"torch.float32": 0, "torch.bfloat16": 1, "torch.int8": 2, "torch.uint8": 3}
"""Number formats of weights, and what the C code calls them. Bytes are two numbers of 4 bits each."""

BLOCK = 32
"""In 4 bits, outputs that lie together and inputs that share a scale: a weight has multiples of both."""


class Weight(NamedTuple):
    """Say what rows are multiplied by; all of it is contiguous and on the CPU.

    Attributes:
        numbers: [N, K], fp32, bf16 or int8; in 4 bits [N, K / 2] uint8, as torch lays them for AVX2
            (`can_read_4_bits`).
        bias: [N] fp32, or None.
        scales: in 8 bits of each output [N] fp32; in 4 bits scale and middle [K / 32, N, 2] bf16; else None.
    """

    numbers: Tensor
    bias: Tensor | None = None
    scales: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Return outputs and inputs."""
        outputs, inputs = self.numbers.shape
        return outputs, inputs * (2 if str(self.numbers.dtype) == "torch.uint8" else 1)

    @classmethod
    def of(cls, layer: nn.Linear) -> Weight:
        """Return a layer's own."""
        bias = None if layer.bias is None else layer.bias.detach().float()
        return cls(layer.weight.detach(), bias)

    def fits(self) -> bool:
        """Answer whether the C code can read it."""
        import torch

        kind = self.numbers.dtype
        if str(kind) not in KINDS or not all(map(_is_plain, self)):
            return False
        (outputs, inputs), scales, bias = self.shape, self.scales, self.bias
        if bias is not None and (bias.dtype != torch.float32 or bias.shape != (outputs,)):
            return False
        if kind == torch.uint8:
            whole = outputs % BLOCK == 0 and inputs % BLOCK == 0 and can_read_4_bits()
            expected, format = (inputs // BLOCK, outputs, 2), torch.bfloat16
            return whole and scales is not None and scales.dtype == format and scales.shape == expected
        if kind == torch.int8:
            return scales is not None and scales.dtype == torch.float32 and scales.shape == (outputs,)
        return scales is None


def _is_plain(tensor: Tensor | None) -> bool:
    """Answer whether a tensor is nothing special, lies close together and on the CPU."""
    import torch

    if tensor is None:
        return True
    return type(tensor.data) is torch.Tensor and tensor.device.type == "cpu" and tensor.is_contiguous()


@functools.cache
def can_read_4_bits() -> bool:
    """Answer whether torch lays numbers of 4 bits as the C code reads them."""
    import torch

    if torch.backends.cpu.get_cpu_capability() != "AVX2":
        return False
    steps = (torch.arange(2 * BLOCK * BLOCK, dtype=torch.int32, device="cpu") * 7 // 3 % 16).view(
        2 * BLOCK, BLOCK
    )
    lies: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(steps, 1)
    expected = steps.view(2, 2, BLOCK // 2, BLOCK).transpose(2, 3).to(torch.uint8)
    packed = expected[:, 0] | expected[:, 1] << 4
    return lies.numel() == packed.numel() and bool((lies.view(packed.shape) == packed).all())


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
        places = map(_place, (weight.numbers, weight.scales, weight.bias))
        return cls(*places, KINDS[str(weight.numbers.dtype)], *weight.shape)


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
        self._outputs = sum(weight.shape[0] for weight in weights)
        self.inputs = weights[0].shape[1]

    @classmethod
    def of(cls, weights: Sequence[Weight]) -> Products | None:
        """Return the products, or None where this machine or these weights cannot have them."""
        if not all(weight.fits() for weight in weights):
            return None
        made = library(Path(__file__).with_suffix(".c"))
        if made is None:
            return None
        multiply = made.multiply
        place, number = ctypes.c_void_p, ctypes.c_int64
        multiply.argtypes = (place, number, place, number, place, number, number)
        return cls(weights, multiply)

    def takes(self, source: Tensor) -> bool:
        """Answer whether rows are few, as wide as the weights' inputs, and on the CPU."""
        width = source.shape[-1]
        return width == self.inputs and source.numel() <= FEW_ROWS * width and source.device.type == "cpu"

    def __call__(self, source: Tensor) -> Tensor:
        """Return the products of rows that it takes, in their format; they are summed up in fp32.

        Raises:
            MemoryError: there is none left.
        """
        import torch

        rows = source.float().contiguous()
        made = torch.empty((*source.shape[:-1], self._outputs), dtype=torch.float32, device="cpu")
        failed = self._multiply(
            rows.data_ptr(),
            rows.numel() // rows.shape[-1],
            self._in_c,
            len(self._in_c),
            made.data_ptr(),
            self._outputs,
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError(f"there is no memory for {source.numel()} rounded numbers")
        return made.to(source.dtype)
