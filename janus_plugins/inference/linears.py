"""Other ways to compute a model's linear layers while it decodes, for any composed model.

Decoding multiplies a few rows by every weight, step after step. On a CPU the general product takes up to
twice as long as oneDNN's with a weight that lies in its own order (benchmarks/README.md). Each layer is laid
out anew only when it has been asked often enough to pay, so a short answer costs nothing; the copies go
when decoding ends. In 8 bits a weight is a quarter of its size, in 4 bits a seventh, and results differ;
those copies stay until the weights change. They pay for a few rows at once; for many they gain no time.

Only layers with exactly `nn.Linear`'s own arithmetic, without hooks and in fp32 on the CPU (bf16, too, for
fewer bits), are touched; all others compute as they are. A class derived from `nn.Linear` says by
`is_linear_alone = True` that it is one when called with its input alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast, get_args
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

Linears = Literal["packed", "plain", "int8", "int4"]
LINEARS: tuple[str, ...] = get_args(Linears)
FEW_BITS = ("int8", "int4")
"""Choices that round the weights."""

Product = Callable[[Tensor], Tensor]
Maker = Callable[[Tensor, Tensor | None], Product]

_HAS_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]

_SMALLEST = 1 << 15
"""Weights below this stay as they are: a call of oneDNN then costs more than the product."""

_CALLS_BEFORE = 4
"""Plain calls before a weight is laid out anew; doing that takes as long as a few of them."""


def when_compiled(choice: Linears) -> Linears:
    """Return how linear layers compute in a compiled step: a compiler lays whole weights out by itself."""
    return choice if choice in FEW_BITS else "plain"


@contextmanager
def fast_linears(choice: Linears, *roots: nn.Module) -> Iterator[None]:
    """Compute the linear layers below `roots` in the chosen way, and as before afterwards.

    Args:
        choice: "packed": the same numbers to rounding; "plain": nothing changes; "int8": weights in 8 bits,
            each output by a scale of its own; "int4": weights in 4 bits, every `_GROUP` of an output by a
            scale and a zero of their own. Both take activations in bf16.
        roots: modules, of which layers may be shared.
    """
    idle = choice == "plain" or (choice == "packed" and not _HAS_ONEDNN)
    layers = [] if idle else _layers(roots, choice)
    for layer in layers:
        layer.forward = _stand_in((layer,), choice)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _layers(roots: tuple[nn.Module, ...], choice: Linears) -> list[nn.Linear]:
    found = dict.fromkeys(layer for root in roots for layer in root.modules())
    return [layer for layer in found if isinstance(layer, nn.Linear) and _fits(layer, choice)]


def _fits(layer: nn.Linear, choice: Linears) -> bool:
    """Answer whether a layer computes what `nn.Linear` does and nothing hangs on its calls."""
    weight = layer.weight
    touched = layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer)
    return (
        (type(layer) is nn.Linear or getattr(layer, "is_linear_alone", False))
        and not touched
        and weight.device.type == "cpu"
        and (weight.dtype == torch.float32 or (choice in FEW_BITS and weight.dtype == torch.bfloat16))
        and weight.numel() >= _SMALLEST
    )


class _Lazy:
    """Stand in for layers of one input, and change over once called often enough.

    A language model that runs several layers on one input may ask for `joined(layers)`.
    """

    def __init__(self, layers: Sequence[nn.Linear], choice: Linears) -> None:
        self.weak, self.choice = [ref(layer) for layer in layers], choice
        self.left = 0 if choice in FEW_BITS else _CALLS_BEFORE
        self.fast: Product | None = None

    @property
    def layers(self) -> list[nn.Linear]:
        """Return the layers, which whoever calls this holds."""
        return [cast(nn.Linear, layer()) for layer in self.weak]

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
        self.fast = _made(self.choice, self.layers)
        return self.fast(source)

    def joined(self, layers: Sequence[nn.Linear]) -> _Lazy | None:
        """Return one product for several layers of one input, their outputs side by side, or None."""
        alike = all(isinstance(vars(layer).get("forward"), _Lazy) for layer in layers)
        biased = {layer.bias is not None for layer in layers}
        return _stand_in(layers, self.choice) if alike and len(biased) == 1 else None


def _pack(weight: Tensor, bias: Tensor | None) -> Product:
    """Return the product with a weight [N, K] that lies in oneDNN's order."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 2)
    multiply = torch.ops.mkldnn._linear_pointwise.default

    def product(source: Tensor) -> Tensor:
        result: Tensor = multiply(source, packed, bias, "none", [], "")
        return result

    return product


_GROUP = 32
"""Weights that share a scale and a zero in 4 bits. Products of few bits read a multiple of so many inputs."""

_OUTPUTS = 16
"""They make a multiple of so many outputs."""


class _InFewBits(nn.Module):
    """Multiply rows by a weight of few bits."""

    bias: Tensor | None

    def __init__(self, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("bias", bias)

    def forward(self, source: Tensor) -> Tensor:
        """Return [..., N] of [..., K]."""
        result = self.multiply(source.reshape(-1, source.shape[-1])).to(source.dtype)
        result = result.view(*source.shape[:-1], result.shape[-1])
        return result if self.bias is None else result + self.bias

    def multiply(self, rows: Tensor) -> Tensor:
        """Return [B, N] of [B, K]."""
        raise NotImplementedError


_FEW_ROWS = 16
"""Rows that the product in 8 bits is made for. For more, a weight is converted, part by part."""

_PART = 256
"""Outputs of such a part: it stays in the nearer caches from one use to the next."""


class In8Bits(_InFewBits):
    """Keep a weight [N, K] in 8 bits, each output by its own scale."""

    whole: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(bias)
        scale = (weight.float().abs().amax(1) / 127).clamp(min=1e-12)
        self.register_buffer("whole", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale.to(torch.bfloat16))

    def multiply(self, rows: Tensor) -> Tensor:
        """Return [B, N] of [B, K]; few rows are rounded to bf16."""
        # A compiler would keep the converted parts, in four times the memory.
        if len(rows) > _FEW_ROWS and not torch.compiler.is_compiling():
            exact, firsts = rows.float(), range(0, len(self.whole), _PART)
            parts = [linear(exact, self.whole[first : first + _PART].float()) for first in firsts]
            return torch.cat(parts, -1).mul_(self.scale)
        rounded = rows.to(torch.bfloat16)
        result: Tensor = torch.ops.aten._weight_int8pack_mm(rounded, self.whole, self.scale)
        return result


class _In4Bits(_InFewBits):
    """Keep a weight [N, K] in 4 bits, scale and zero by groups."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(bias)
        outputs, inputs = weight.shape
        groups = weight.float().view(outputs, -1, _GROUP)
        least, most = groups.amin(2, keepdim=True), groups.amax(2, keepdim=True)
        scale = ((most - least) / 15).clamp(min=1e-9)
        whole = ((groups - least) / scale).round().to(torch.int32).view(outputs, inputs)
        self.register_buffer("packed", torch.ops.aten._convert_weight_to_int4pack_for_cpu(whole, 1))
        # The product's zero is the middle of the 16 steps.
        spread = torch.cat([scale, least + 8 * scale], 2).transpose(0, 1)
        self.register_buffer("spread", spread.to(torch.bfloat16).contiguous())

    def multiply(self, rows: Tensor) -> Tensor:
        """Return [B, N] of [B, K], rounded to bf16."""
        rounded = rows.to(torch.bfloat16)
        result: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(rounded, self.packed, _GROUP, self.spread)
        return result


def _few_bits(kind: type[In8Bits | _In4Bits]) -> Maker:
    """Return what makes products of few bits, and plain ones of weights whose sizes do not divide."""

    def make(weight: Tensor, bias: Tensor | None) -> Product:
        outputs, inputs = weight.shape
        if outputs % _OUTPUTS or inputs % _GROUP:
            return functools.partial(linear, weight=weight, bias=bias)
        return kind(weight, bias)

    return make


_MAKERS: dict[Linears, Maker] = {
    "packed": _pack,
    "int8": _few_bits(In8Bits),
    "int4": _few_bits(_In4Bits),
}

_KEPT: WeakKeyDictionary[nn.Linear, dict[Hashable, tuple[Hashable, _Lazy]]] = WeakKeyDictionary()
"""Stand-ins of few bits, by their first layer: making one takes long, its memory is little, and what was
compiled with it asks for the very same."""


def state_of(tensors: Iterable[Tensor]) -> Hashable:
    """Return what differs once one of the tensors has been written to or replaced."""
    # Tensors made under inference_mode count no writes.
    return tuple((one.data_ptr(), 0 if one.is_inference() else one._version) for one in tensors)


def _stand_in(layers: Sequence[nn.Linear], choice: Linears) -> _Lazy:
    """Return what stands in for layers of one input; one of few bits is kept while the weights stay."""
    if choice not in FEW_BITS:
        return _Lazy(layers, choice)
    state = state_of(tensor for layer in layers for tensor in layer.parameters(recurse=False))
    kept = _KEPT.setdefault(layers[0], {})
    known = kept.get((choice, len(layers)))
    if known is None or known[0] != state:
        kept[choice, len(layers)] = known = (state, _Lazy(layers, choice))
    return known[1]


def _made(choice: Linears, layers: Sequence[nn.Linear]) -> Product:
    """Return the product of layers of one input."""
    weights = [layer.weight.detach() for layer in layers]
    biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
    whole = weights[0] if len(weights) == 1 else torch.cat(weights)
    return _MAKERS[choice](whole, torch.cat(biases) if biases else None)
