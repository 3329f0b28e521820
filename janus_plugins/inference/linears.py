"""Other ways to compute a model's linear layers while it decodes, for any composed model.

Decoding multiplies a few rows by every weight, step after step. On a CPU the general product takes up to
twice as long as oneDNN's with a weight that lies in its own order (benchmarks/README.md). Each layer is laid
out anew only when it has been asked often enough to pay, so a short answer costs nothing; the copies go
when decoding ends. In 8 bits a weight is a quarter of its size, in 4 bits a seventh, and results differ.

Only layers with exactly `nn.Linear`'s own arithmetic, without hooks and in fp32 on the CPU, are touched;
all others compute as they are. A class derived from `nn.Linear` says by `is_linear_alone = True` that it is
one when called with its input alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

Linears = Literal["packed", "plain", "int8", "int4"]
LINEARS: tuple[str, ...] = get_args(Linears)

Product = Callable[[Tensor], Tensor]
Maker = Callable[[Tensor, Tensor | None], Product]

_HAS_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]

_SMALLEST = 1 << 15
"""Weights below this stay as they are: a call of oneDNN then costs more than the product."""

_CALLS_BEFORE = 4
"""Plain calls before a weight is laid out anew; doing that takes as long as a few of them."""


@contextmanager
def fast_linears(choice: Linears, *roots: nn.Module) -> Iterator[None]:
    """Compute the linear layers below `roots` in the chosen way, and as before afterwards.

    Args:
        choice: "packed": the same numbers to rounding; "plain": nothing changes; "int8": weights and
            activations in 8 bits, each output and each row by its own scale; "int4": weights in 4 bits,
            every `_GROUP` of an output by a scale and a zero of their own, activations in bf16.
        roots: modules, of which layers may be shared.
    """
    layers = [] if choice == "plain" or not _HAS_ONEDNN else _layers(roots)
    make = _MAKERS.get(choice, _pack)
    for layer in layers:
        layer.forward = _Lazy((layer,), make, _CALLS_BEFORE if choice == "packed" else 0)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _layers(roots: tuple[nn.Module, ...]) -> list[nn.Linear]:
    found = dict.fromkeys(layer for root in roots for layer in root.modules())
    return [layer for layer in found if isinstance(layer, nn.Linear) and _fits(layer)]


def _fits(layer: nn.Linear) -> bool:
    """Answer whether a layer computes what `nn.Linear` does and nothing hangs on its calls."""
    weight = layer.weight
    touched = layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer)
    return (
        (type(layer) is nn.Linear or getattr(layer, "is_linear_alone", False))
        and not touched
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.numel() >= _SMALLEST
    )


_MIDDLE = 128
"""The zero of activations in 8 bits: oneDNN is fast with unsigned ones only."""


class _Lazy:
    """Stand in for layers of one input, and change over once called `after` times.

    A language model that runs several layers on one input may ask for `joined(layers)`.
    """

    def __init__(self, layers: Sequence[nn.Linear], make: Maker, after: int) -> None:
        self.layers, self.make, self.after, self.left = layers, make, after, after
        self.fast: Product | None = None

    def __call__(self, source: Tensor, *others: Any, **named: Any) -> Tensor:
        if others or named:
            only = self.layers[0]
            answer: Tensor = type(only).forward(only, source, *others, **named)
            return answer
        if self.fast is not None:
            return self.fast(source)
        if self.left > 0:
            self.left -= 1
            parts = [linear(source, layer.weight, layer.bias) for layer in self.layers]
            return parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        weights = [layer.weight.detach() for layer in self.layers]
        self.fast = self.make(weights[0] if len(weights) == 1 else torch.cat(weights), _biases(self.layers))
        return self.fast(source)

    def joined(self, layers: Sequence[nn.Linear]) -> _Lazy | None:
        """Return one product for several layers of one input, their outputs side by side, or None."""
        alike = all(isinstance(vars(layer).get("forward"), _Lazy) for layer in layers)
        biased = {layer.bias is not None for layer in layers}
        return _Lazy(layers, self.make, self.after) if alike and len(biased) == 1 else None


def _biases(layers: Sequence[nn.Linear]) -> Tensor | None:
    kept = [layer.bias.detach() for layer in layers if layer.bias is not None]
    return torch.cat(kept) if kept else None


def _pack(weight: Tensor, bias: Tensor | None) -> Product:
    """Return the product with a weight [N, K] that lies in oneDNN's order."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 2)
    multiply = torch.ops.mkldnn._linear_pointwise.default

    def product(source: Tensor) -> Tensor:
        result: Tensor = multiply(source, packed, bias, "none", [], "")
        return result

    return product


_LARGEST = 127 if torch.cpu._is_vnni_supported() else 63
"""The largest whole weight. Without VNNI a CPU adds products in pairs of 16 bits, which must not overflow."""


def _quantise(weight: Tensor, bias: Tensor | None) -> Product:
    """Return the product with a weight [N, K] in 8 bits; each row of the input has its own scale."""
    scale = (weight.abs().amax(1) / _LARGEST).clamp(min=1e-12)
    whole = (weight / scale[:, None]).round().to(torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(whole, None)
    zeros = torch.zeros(len(scale), dtype=torch.int64)
    multiply = torch.ops.onednn.qlinear_pointwise.default

    def product(source: Tensor) -> Tensor:
        rows = source.reshape(-1, source.shape[-1])
        spread = (rows.abs().amax(1, keepdim=True) / 127).clamp(min=1e-12)
        steps = (rows / spread + _MIDDLE).round().to(torch.uint8)
        summed = multiply(
            steps, 1.0, _MIDDLE, packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        result: Tensor = (summed * spread).view(*source.shape[:-1], -1)
        return result if bias is None else result + bias

    return product


_GROUP = 32
"""Weights that share a scale and a zero in 4 bits."""

_OUTPUTS = 16
"""The 4-bit product of a CPU makes a multiple of so many outputs."""


def _quantise_to_4(weight: Tensor, bias: Tensor | None) -> Product:
    """Return the product with a weight [N, K] in 4 bits; one whose sizes do not divide is packed."""
    outputs, inputs = weight.shape
    if outputs % _OUTPUTS or inputs % _GROUP:
        return _pack(weight, bias)
    groups = weight.view(outputs, -1, _GROUP)
    least, most = groups.amin(2, keepdim=True), groups.amax(2, keepdim=True)
    scale = ((most - least) / 15).clamp(min=1e-9)
    whole = ((groups - least) / scale).round().to(torch.int32).view(outputs, inputs)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(whole, 1)
    # The product's zero is the middle of the 16 steps.
    spread = torch.cat([scale, least + 8 * scale], 2).transpose(0, 1).to(torch.bfloat16).contiguous()
    multiply = torch.ops.aten._weight_int4pack_mm_for_cpu.default

    def product(source: Tensor) -> Tensor:
        rows = source.reshape(-1, inputs).to(torch.bfloat16)
        result: Tensor = multiply(rows, packed, _GROUP, spread).to(source.dtype)
        result = result.view(*source.shape[:-1], outputs)
        return result if bias is None else result + bias

    return product


_MAKERS: dict[Linears, Maker] = {"packed": _pack, "int8": _quantise, "int4": _quantise_to_4}
