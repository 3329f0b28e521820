"""Half precision on a CPU that has no instructions for it: products and convolutions computed in fp32.

Without them torch multiplies numbers of 16 bits several times slower than fp32, in attention's gradients,
too, and convolves them almost a hundred times slower (benchmarks/halves.py). Here they are converted,
computed in fp32 and rounded once, as such instructions do themselves. It pays where a weight meets many rows:
in prompts, encoders, decoders and training. A step of decoding, which does little more than read its weights,
stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

FEW_ROWS = 16
"""Rows that are left as they are: converting a weight takes longer."""

_PART = 1024
"""Outputs of a weight that are converted at once: they stay in the nearer caches until they are used."""

_ASKED = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
"""What tells whether the CPU has instructions for a format."""

_aten = torch.ops.aten

_PRODUCTS = {_aten.mm.default, _aten.addmm.default}
"""Rows times one weight."""

_OTHERS = {
    _aten.bmm.default,
    _aten.baddbmm.default,
    _aten.convolution.default,
    _aten._convolution.default,
    _aten.convolution_backward.default,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward.default,  # forward it is as quick as it is
}


@contextmanager
def widened(module: nn.Module, rows: int | None = None) -> Iterator[None]:
    """Run what a module computes meanwhile in fp32 where its own number format is slow.

    Args:
        module: what runs; its first parameter says where and in which format.
        rows: how many rows of a language model run at once, where it is one.
    """
    weight = next(module.parameters(), None)
    few = rows is not None and rows <= FEW_ROWS
    if weight is None or few or not is_slow(weight.dtype, weight.device):
        yield
        return
    with _InFp32(weight.dtype):
        yield


def is_slow(dtype: torch.dtype, device: torch.device) -> bool:
    """Answer whether a device computes this format without instructions for it."""
    name = _ASKED.get(dtype)
    if name is None or device.type != "cpu":
        return False
    able = getattr(torch.ops.mkldnn, name, None)  # not in builds without oneDNN, whose own products are slow
    return able is None or not able()


_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
"""What is written in terms of others comes in pieces, but whole where gradients were never thought of."""


class _InFp32(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Compute products, convolutions and attention's gradients of one format in fp32; all else as it is."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._dtype = dtype

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if first is None or first.dtype != self._dtype:
            return func(*args, **named)
        if func in _PRODUCTS and not named:
            return self._product(func, *args)
        if func in _OTHERS:
            made = func(*self._wide(args), **self._wide(named))
            return tree_map_only(Tensor, lambda one: one.to(self._dtype), made)
        if torch.is_inference_mode_enabled() and func.has_kernel_for_dispatch_key(_COMPOSITE):
            with self:
                return func.decompose(*args, **named)
        return func(*args, **named)

    def _product(self, func: Callable[..., Tensor], *args: Tensor) -> Tensor:
        """Multiply rows [B, K] by a weight [K, N]; what is added, as wide as [B, N], comes before them."""
        *added, rows, weight = args
        if len(rows) <= FEW_ROWS:
            return func(*args)
        wide = rows.float()
        parts = []
        for first in range(0, weight.shape[1], _PART):
            some = slice(first, first + _PART)
            biases = (each if each.shape[-1:] in ((), (1,)) else each[..., some] for each in added)
            made = func(*(each.float() for each in biases), wide, weight[:, some].float())
            parts.append(made.to(self._dtype))
        return torch.cat(parts, 1)

    def _wide(self, values: Any) -> Any:
        def widen(one: Tensor) -> Tensor:
            return one.float() if one.dtype == self._dtype else one

        return tree_map_only(Tensor, widen, values)
