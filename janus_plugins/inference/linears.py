"""Other ways to compute a model's linear layers while it decodes, for any composed model.

Decoding multiplies a few rows by every weight, step after step. On a CPU torch's product takes longer than
the weight takes to come from memory (benchmarks/README.md). Products of up to `FEW_ROWS`
rows therefore run in C (`core.native`), which reads weights where they lie. Where that cannot be compiled,
and for more rows, it is oneDNN's product with a weight that lies in its own order, which is quicker than
torch's; for that a layer is laid out anew only when it has been asked often enough to pay, and the
copies go when decoding ends. In 8 bits a weight is a quarter of its size, in 4 bits a seventh, and results
differ; those copies stay until the weights change. They pay for a few rows at once; for many they gain no
time.

A compiled step on a GPU has kernels of its own for a few rows (`core.native.on_gpu`), which read a weight
quicker than a library's, and begin before the kernel ahead has ended.

Only layers with exactly `nn.Linear`'s own arithmetic and without hooks, on the CPU in fp32 or bf16, are
touched; all others compute as they are, and so do all where gradients are recorded. A class derived from
`nn.Linear` says by `is_linear_alone = True` that it is one when called with its input alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NoReturn, cast, get_args
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from janus_plugins.core.errors import JanusPluginsError
from janus_plugins.core.native import on_gpu
from janus_plugins.core.native.build import can_run
from janus_plugins.core.native.products import Products, Weight
from janus_plugins.inference.halves import is_slow

Linears = Literal["packed", "plain", "int8", "int4"]
LINEARS: tuple[str, ...] = get_args(Linears)
Way = Literal["packed", "plain", "int8", "int4", "kernels"]
"""What may be chosen, and what compiled steps on a GPU do where "packed" is."""

FEW_BITS = ("int8", "int4")
"""Choices that round the weights."""

Product = Callable[[Tensor], Tensor]
Maker = Callable[[Tensor, Tensor | None], Product]

_HAS_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]

_SMALLEST = 1 << 15
"""Weights below this stay as they are: another call then costs more than the product."""

_CALLS_BEFORE = 4
"""Plain calls before a weight is laid out anew; doing that takes as long as a few of them."""


def when_compiled(choice: Linears, device: torch.device) -> Way:
    """Return how linear layers compute in a compiled step: a compiler lays whole weights out by itself."""
    if choice == "packed" and on_gpu.has_kernels(device):
        return "kernels"
    return choice if choice in FEW_BITS else "plain"


@contextmanager
def fast_linears(choice: Way, *roots: nn.Module) -> Iterator[None]:
    """Compute the linear layers below `roots` in the chosen way, and as before afterwards.

    Args:
        choice: "packed": the same numbers to rounding; "plain": nothing changes; "int8": weights in 8 bits,
            each output by a scale of its own; "int4": weights in 4 bits, every `_GROUP` of an output by a
            scale and a zero of their own. Both take activations in bf16. "kernels": a GPU's, in a compiled
            step.
        roots: modules, of which layers may be shared.
    """
    idle = choice == "plain" or (choice == "packed" and not (_HAS_ONEDNN or can_run()))
    before, touched = _outer(roots), list[nn.Linear]()
    try:
        for layer in before:
            del layer.forward
        for layer in [] if idle else _layers(roots, choice):
            touched.append(layer)
            layer.forward = _instead(layer, choice)  # type: ignore[method-assign]
        yield
    finally:
        for layer in touched:
            vars(layer).pop("forward", None)
        for layer, way in before.items():
            layer.forward = way


def _outer(roots: tuple[nn.Module, ...]) -> dict[nn.Module, _Lazy]:
    """Return the layers that have a stand-in, such as that of a call which this one is made within."""
    ways = ((layer, vars(layer).get("forward")) for root in roots for layer in root.modules())
    return {layer: way for layer, way in ways if isinstance(way, _Lazy)}


def _instead(layer: nn.Linear, choice: Way) -> Callable[..., Tensor]:
    return _ByKernel.of(layer) if choice == "kernels" else _stand_in((layer,), choice)


def _layers(roots: tuple[nn.Module, ...], choice: Way) -> list[nn.Linear]:
    found = dict.fromkeys(layer for root in roots for layer in root.modules())
    return [layer for layer in found if isinstance(layer, nn.Linear) and _fits(layer, choice)]


def _fits(layer: nn.Linear, choice: Way) -> bool:
    """Answer whether a layer computes what `nn.Linear` does and nothing hangs on its calls."""
    touched = layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer)
    plain = type(layer) is nn.Linear or getattr(layer, "is_linear_alone", False)
    if touched or not plain or layer.weight.numel() < _SMALLEST:
        return False
    if choice == "kernels":
        return _ByKernel.fits(layer.weight)
    return layer.weight.device.type == "cpu" and _takes(layer.weight.dtype, choice)


def _takes(dtype: torch.dtype, choice: Way) -> bool:
    return dtype == torch.float32 or (dtype == torch.bfloat16 and _takes_bf16(choice))


class _StandIn:
    """Stand in for layers while a model answers, of the same arithmetic.

    Refuses to be copied or pickled: a copied layer would go on computing by the first one's weights.
    """

    stands_in = True
    """For whoever looks whether a layer is one of its class's own arithmetic (`language_models.step`)."""

    def __reduce__(self) -> NoReturn:
        raise JanusPluginsError(
            "a model cannot be copied or pickled while it answers; do it before the call or after it, or "
            "answer with linears='plain'"
        )


class _ByKernel(_StandIn):
    """Multiply a few rows by a layer's weight in a compiled step on a GPU; all else as the layer does."""

    def __init__(self, layer: nn.Linear) -> None:
        self.weak = ref(layer)

    @classmethod
    def of(cls, layer: nn.Linear) -> _ByKernel:
        """Return a layer's own: what was compiled with it asks for the very same."""
        known = _BY_KERNEL.get(layer)
        if known is None:
            _BY_KERNEL[layer] = known = cls(layer)
        return known

    @staticmethod
    def fits(weight: Tensor) -> bool:
        """Answer whether there are kernels for a weight."""
        floats = weight.dtype in (torch.float32, torch.bfloat16, torch.float16)
        return floats and weight.is_contiguous() and on_gpu.has_kernels(weight.device)

    def __call__(self, source: Tensor, *others: Any, **named: Any) -> Tensor:
        layer = cast(nn.Linear, self.weak())
        weight, rows = layer.weight, source.numel() // max(1, source.shape[-1])
        fits = torch.compiler.is_compiling() and rows <= on_gpu.MOST and source.dtype == weight.dtype
        if others or named or not fits:
            answer: Tensor = type(layer).forward(layer, source, *others, **named)
            return answer
        whole = source.reshape(rows, -1)
        answer = on_gpu.plain_product(whole, weight)
        answer = answer.view(*source.shape[:-1], len(weight))
        return answer if layer.bias is None else answer + layer.bias


def _takes_bf16(choice: Way) -> bool:
    # With instructions for bf16 torch's own products are quick.
    return choice in FEW_BITS or (can_run() and is_slow(torch.bfloat16, torch.device("cpu")))


class _Lazy(_StandIn):
    """Stand in for layers of one input, and change over once called often enough.

    A language model that runs several layers on one input may ask for `joined(layers)`, and one that runs a
    whole step in C for the `weights`.
    """

    def __init__(self, layers: Sequence[nn.Linear], choice: Way) -> None:
        self.weak, self.choice = [ref(layer) for layer in layers], choice
        self.left = 0 if choice in FEW_BITS else _CALLS_BEFORE
        self.fast: Product | None = None
        self._dtype = layers[0].weight.dtype
        self._lays_out = choice in FEW_BITS or (self._dtype == torch.float32 and _HAS_ONEDNN)

    @property
    def layers(self) -> list[nn.Linear]:
        """Return the layers, which whoever calls this holds."""
        return [cast(nn.Linear, layer()) for layer in self.weak]

    def __call__(self, source: Tensor, *others: Any, **named: Any) -> Tensor:
        # Gradients are recorded by a listener that trains meanwhile, or by another thread: never by decoding.
        if others or named or (len(self.weak) == 1 and torch.is_grad_enabled()):
            only = self.layers[0]
            answer: Tensor = type(only).forward(only, source, *others, **named)
            return answer
        few = self._few(source)
        if few is not None:
            return few(source)
        # Of another format than the weight a source is under autocast, which then converts both.
        lays_out = self._lays_out and (self.choice in FEW_BITS or source.dtype == self._dtype)
        if self.fast is not None and lays_out:
            return self.fast(source)
        if self.left > 0 or not lays_out:
            self.left -= 1
            parts = [linear(source, layer.weight, layer.bias) for layer in self.layers]
            return parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        self.fast = _made(self.choice, self.layers)
        return self.fast(source)

    def _few(self, source: Tensor) -> Products | None:
        """Return the products in C, where they are the quickest for so many rows."""
        if self.choice != "packed" or _is_compiling():
            return None
        products = self.products
        fits = products is not None and source.dtype == self._dtype and products.takes(source)
        return products if fits else None

    @functools.cached_property
    def products(self) -> Products | None:
        """Return the products in C, where this machine has them."""
        return None if self.weights is None else Products.of(self.weights)

    @functools.cached_property
    def weights(self) -> list[Weight] | None:
        """Return what rows are multiplied by, outputs side by side, where products in C may read it."""
        if self.choice == "packed":
            return [Weight.of(layer) for layer in self.layers]
        if self.fast is None:
            self.fast = _made(self.choice, self.layers)
        return self.fast.weights if isinstance(self.fast, _InFewBits) else None

    def joined(self, layers: Sequence[nn.Linear]) -> _Lazy | None:
        """Return one product for several layers of one input, their outputs side by side, or None."""
        ways = [vars(layer).get("forward") for layer in layers]
        alike = all(isinstance(way, _Lazy) and way.choice == self.choice for way in ways)
        biased = {layer.bias is not None for layer in layers}
        return _stand_in(layers, self.choice) if alike and len(biased) == 1 else None


_BY_KERNEL: WeakKeyDictionary[nn.Linear, _ByKernel] = WeakKeyDictionary()

_is_compiling = torch.compiler.is_compiling


def _exact(after: Tensor | None) -> Tensor | None:
    """Return what products in C apply to a sum."""
    return None if after is None else after.detach().float()


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
    weights: list[Weight] | None = None
    products: Products | None = None

    def __init__(self, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("bias", bias)

    def read_in_c(self, weight: Weight) -> None:
        """Let a few rows meet the weight in C, where this machine and its sizes allow."""
        self.products = Products.of([weight])
        self.weights = None if self.products is None else [weight]

    def forward(self, source: Tensor) -> Tensor:
        """Return [..., N] of [..., K]."""
        if not _is_compiling() and self.products is not None and self.products.takes(source):
            return self.products(source)
        result = self.multiply(source.reshape(-1, source.shape[-1])).to(source.dtype)
        result = result.view(*source.shape[:-1], result.shape[-1])
        return result if self.bias is None else result + self.bias

    def multiply(self, rows: Tensor) -> Tensor:
        """Return [B, N] of [B, K]."""
        raise NotImplementedError


_FEW_ROWS = 16
"""Rows that the library's product in 8 bits is made for. For more, a weight is converted, part by part."""

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
        self.read_in_c(Weight(self.whole, _exact(bias), _exact(self.scale)))

    def multiply(self, rows: Tensor) -> Tensor:
        """Return [B, N] of [B, K]; both are rounded to bf16, however many rows there are."""
        # A compiler would keep the converted parts, in four times the memory.
        if len(rows) > _FEW_ROWS and not _is_compiling():
            exact, firsts = rows.to(torch.bfloat16).float(), range(0, len(self.whole), _PART)
            parts = [linear(exact, self.whole[first : first + _PART].float()) for first in firsts]
            return torch.cat(parts, -1).mul_(self.scale).to(torch.bfloat16)
        rounded = rows.to(torch.bfloat16)
        result: Tensor = torch.ops.aten._weight_int8pack_mm(rounded, self.whole, self.scale)
        return result


class _In4Bits(_InFewBits):
    """Keep a weight [N, K] in 4 bits, scale and zero by groups."""

    packed: Tensor
    spread: Tensor

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
        self.read_in_c(Weight(self.packed, _exact(bias), self.spread))

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


_MAKERS: dict[Way, Maker] = {
    "packed": _pack,
    "int8": _few_bits(In8Bits),
    "int4": _few_bits(_In4Bits),
}

_KEPT: WeakKeyDictionary[nn.Linear, dict[Hashable, tuple[Hashable, _Lazy]]] = WeakKeyDictionary()
"""Stand-ins of few bits, by their first layer: making one takes long, its memory is little, and what was
compiled with it asks for the very same."""


def state_of(tensors: Iterable[Tensor]) -> Hashable:
    """Return what differs once one of the tensors has been written to or replaced.

    torch counts writes but for those through `.data`, under inference_mode and by its fused optimisers;
    these show in numbers of each tensor, of every row and of every column some.
    """
    kept = list(tensors)
    counted = tuple((one.data_ptr(), 0 if one.is_inference() else one._version) for one in kept)
    alike: dict[Hashable, list[Tensor]] = {}  # so that one copy of each kind waits for a device
    for one in kept:
        if type(one) in (Tensor, nn.Parameter):  # else such as a library's quantised weight
            alike.setdefault((one.device, one.dtype), []).append(_some(one))
    return counted, tuple(_hash(torch.cat(several)) for several in alike.values())


def _some(one: Tensor) -> Tensor:
    step = _step(len(one) if one.dim() else 1, one[:1].numel() if one.dim() else 1)
    if one.is_contiguous():  # by one operator: on a device's host each takes longer than what it does
        number = -(-one.numel() // step)
        return torch.as_strided(one.detach(), (number,), (step,), one.storage_offset())
    return one.detach().reshape(-1)[::step]


@functools.cache
def _step(rows: int, columns: int) -> int:
    """Return the largest step that meets each row and, as it has no divisor of their number, each column."""
    return next(step for step in range(max(1, min(rows, columns)), 0, -1) if math.gcd(step, columns) == 1)


def _hash(numbers: Tensor) -> int:
    if numbers.device.type == "cpu":
        return hash(numbers.contiguous().view(torch.uint8).numpy().tobytes())
    return int(_weighed(numbers))  # to bring those of a billion weights here takes longer


def _weighed(numbers: Tensor) -> Tensor:
    """Return one number that is another where others have changed: octets, each of a weight of its own."""
    octets = numbers.contiguous().view(torch.uint8).long() + 1
    spread = torch.arange(1, len(octets) + 1, device=numbers.device) * _ODD
    weights = (spread ^ (spread >> 32)) * _ODD | 1  # odd: no change of one octet is lost modulo 2 ** 64
    return (octets * weights).sum()


_ODD = 0x9E3779B97F4A7C15 - (1 << 64)


def hung_on(modules: Iterable[nn.Module]) -> Hashable:
    """Return what differs once a module has been exchanged, or has another hook or `forward`.

    By weak references: what comes to lie where another has been is another, and nothing is kept.
    """
    return tuple(
        (ref(one), ref(type(one)), *one._forward_hooks, *one._forward_pre_hooks, _own_forward(one))
        for one in modules
    )


def _own_forward(module: nn.Module) -> Hashable:
    own = vars(module).get("forward")
    if own is None or isinstance(own, _StandIn):
        return None
    try:
        return ref(own)
    except TypeError:  # of a class with slots
        return id(own)


def _stand_in(layers: Sequence[nn.Linear], choice: Way) -> _Lazy:
    """Return what stands in for layers of one input; one of few bits is kept while the weights stay."""
    if choice not in FEW_BITS:
        return _Lazy(layers, choice)
    state = state_of(tensor for layer in layers for tensor in layer.parameters(recurse=False))
    kept = _KEPT.setdefault(layers[0], {})
    known = kept.get((choice, len(layers)))
    if known is None or known[0] != state:
        kept[choice, len(layers)] = known = (state, _Lazy(layers, choice))
    return known[1]


def _made(choice: Way, layers: Sequence[nn.Linear]) -> Product:
    """Return the product of layers of one input."""
    weights = [layer.weight.detach() for layer in layers]
    biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
    whole = weights[0] if len(weights) == 1 else torch.cat(weights)
    return _MAKERS[choice](whole, torch.cat(biases) if biases else None)
