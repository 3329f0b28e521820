"""A few slots of each row on a CPU, through all layers in one call of C (`step.c`).

At small sizes a step in torch is mostly calls, at large ones products that read their weights at half the
speed of memory. It is taken where linear layers compute by other ways than torch's anyway
(`inference.linears`): a layer's `forward` then offers the `weights` that it multiplies by.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from janus_plugins.core.native.build import library
from janus_plugins.core.native.products import FEW_ROWS, KINDS, InC, Weight

if TYPE_CHECKING:
    from janus_plugins.language_models.cache import CachedAttention, KeyValueCache
    from janus_plugins.language_models.step import LlamaStep


_NO_ANGLE = 2
"""What `step.c` answers where a position lies beyond the angles that there are."""


class _Layer(ctypes.Structure):
    """Mirror `Layer` of `step.c`."""

    _fields_ = (
        ("before", InC * 3),
        ("after", InC * 1),
        ("gated", InC * 2),
        ("down", InC * 1),
        ("num_before", ctypes.c_int64),
        ("num_gated", ctypes.c_int64),
        ("first_norm", ctypes.c_void_p),
        ("second_norm", ctypes.c_void_p),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
    )


class _Body(ctypes.Structure):
    """Mirror `Body` of `step.c`."""

    _fields_ = (
        ("layers", ctypes.POINTER(_Layer)),
        *((name, ctypes.c_void_p) for name in ("norm", "cos", "sin")),
        *(
            (name, ctypes.c_int64)
            for name in ("num_layers", "width", "inner", "heads", "groups", "head_width", "length", "kind")
        ),
        ("eps", ctypes.c_float),
        ("scale", ctypes.c_float),
    )


class _Place(ctypes.Structure):
    """Mirror `Place` of `step.c`."""

    _fields_ = (
        ("positions", ctypes.c_void_p),
        ("visible", ctypes.c_void_p),
        *(
            (name, ctypes.c_int64)
            for name in ("visible_row", "visible_slot", "rows", "slots", "start", "threads")
        ),
    )


class OnCpu:
    """Run a `LlamaStep` in C over one cache.

    Args:
        step: the step.
        weights: of every layer those before attention, after it, gated and last.
        native: the compiled `step.c`.
    """

    def __init__(self, step: LlamaStep, weights: list[_Weights], native: ctypes.CDLL) -> None:
        cached = [step.cache.layers[index] for index in range(len(weights))]
        norms = [[norm.weight.detach().float() for norm in _norms(layer)] for layer in step.layers]
        angles = [step.norm.weight.detach().float(), step.cos.float(), step.sin.float()]
        # Whatever C reads is held here. A cache whose memory moves is another cache, with another step.
        self._held = (weights, cached, norms, angles)
        self._layers = (_Layer * len(weights))(*map(_layer, weights, norms, cached))
        self._body = _Body(
            self._layers,
            *(each.data_ptr() for each in angles),
            len(weights),
            *weights[0].down[0].shape,
            step.heads,
            step.groups,
            step.cos.shape[-1],
            step.cache.length,
            KINDS[str(cached[0][0].dtype)],
            step.norm.variance_epsilon,
            step.layers[0].self_attn.scaling,
        )
        self._place = _Place()
        self._native = native
        self._arguments = (ctypes.byref(self._body), ctypes.byref(self._place))

    @classmethod
    def of(cls, step: LlamaStep) -> OnCpu | None:
        """Return the way of a step that the C code computes, or None."""
        if not _is_asked(step) or not _fits(step, step.cache):
            return None
        weights = [_Weights.of(*each) for each in zip(step.qkvs, step.gate_ups, step.layers, strict=True)]
        if not all(each is not None and each.fit(step) for each in weights):
            return None
        native = library(Path(__file__).with_name("step.c"))
        if native is None:
            return None
        native.room.restype = ctypes.c_int64
        return cls(step, cast(list[_Weights], weights), native)

    def takes(self, embeds: Tensor, attend: CachedAttention) -> bool:
        """Answer whether it runs slots [B, S, M] of a plan."""
        rows, slots, _ = embeds.shape
        return rows * slots <= FEW_ROWS and not attend.causal and attend.slot is None

    def __call__(self, embeds: Tensor, positions: Tensor, attend: CachedAttention) -> Tensor:
        """Return hidden states after the final norm [B, S, M] of slots [B, S, M] at positions [B, S] (int64).

        Raises:
            IndexError: a position lies beyond the cache's length.
            MemoryError: there is none left.
        """
        stream = embeds.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        (rows, slots, _), at, place = stream.shape, positions.contiguous(), self._place
        place.rows, place.slots, place.start = rows, slots, attend.start
        place.positions, place.threads, place.visible = at.data_ptr(), torch.get_num_threads(), None
        if attend.mask is not None:
            seen = attend.mask[:, 0].expand(rows, slots, attend.reach)
            seen = seen if seen.stride(-1) == 1 else seen.contiguous()
            place.visible_row, place.visible_slot, _ = seen.stride()
            place.visible = seen.data_ptr()
        room = self._native.room(self._arguments[0], ctypes.c_int64(rows * slots))
        space = torch.empty(room, dtype=torch.float32, device="cpu")  # whatever torch's defaults are
        places = (ctypes.c_void_p(each.data_ptr()) for each in (stream, space))
        failed = self._native.step(*self._arguments, *places)
        if failed == _NO_ANGLE:
            raise IndexError(
                f"positions {positions.flatten().tolist()} are not all below {self._body.length}, the cache's"
            )
        if failed:
            raise MemoryError("there is no memory for a decoding step")
        return stream.to(embeds.dtype)


class _Weights(NamedTuple):
    """Hold what the products of a layer multiply by, in the order of their outputs."""

    before: list[Weight]
    after: list[Weight]
    gated: list[Weight]
    down: list[Weight]

    @classmethod
    def of(cls, qkv: Any, gate_up: Any, layer: Any) -> _Weights | None:
        """Return those of a layer, its products joined where they are, or None where one does not say."""
        block, mlp = layer.self_attn, layer.mlp
        before = _several(qkv, block.q_proj, block.k_proj, block.v_proj)
        gated = _several(gate_up, mlp.gate_proj, mlp.up_proj)
        made = (before, _each(block.o_proj), gated, _each(mlp.down_proj))
        return None if any(each is None for each in made) else cls(*cast(Any, made))

    def fit(self, step: LlamaStep) -> bool:
        """Answer whether all of them are as large as the step takes them to be."""
        (width, inner), each = step.layers[0].mlp.down_proj.weight.shape, step.cos.shape[-1]
        heads = step.heads * each
        return [_size(one) for one in self] == [
            (heads + 2 * step.groups * each, width),
            (width, heads),
            (2 * inner, width),
            (width, inner),
        ]


def _size(weights: list[Weight]) -> tuple[int, int]:
    """Return outputs and inputs of weights of one input."""
    inputs = {weight.shape[1] for weight in weights}
    return sum(weight.shape[0] for weight in weights), inputs.pop() if len(inputs) == 1 else -1


def _layer(weights: _Weights, norms: list[Tensor], cached: tuple[Tensor, Tensor]) -> _Layer:
    before, after, gated, down = ([InC.of(weight) for weight in each] for each in weights)
    return _Layer(
        (InC * 3)(*before),
        (InC * 1)(*after),
        (InC * 2)(*gated),
        (InC * 1)(*down),
        len(before),
        len(gated),
        *(each.data_ptr() for each in (*norms, *cached)),
    )


def _several(joined: Any, *layers: nn.Linear) -> list[Weight] | None:
    # Asking each layer for itself may lay its weight out once more.
    return _offered(joined) if hasattr(joined, "weights") else _each(*layers)


def _each(*layers: nn.Linear) -> list[Weight] | None:
    found = [_offered(layer.forward) if "forward" in vars(layer) else _own(layer) for layer in layers]
    return None if any(each is None for each in found) else [one for each in found for one in each or ()]


def _own(layer: nn.Linear) -> list[Weight] | None:
    return _fitting([Weight.of(layer)])


def _offered(product: Any) -> list[Weight] | None:
    """Return the weights that a product reads, outputs side by side, where it offers them."""
    return _fitting(getattr(product, "weights", None))


def _fitting(weights: list[Weight] | None) -> list[Weight] | None:
    return weights if weights is not None and all(weight.fits() for weight in weights) else None


def _is_asked(step: LlamaStep) -> bool:
    """Answer whether something stands in for a layer; small ones stay themselves."""
    return any("forward" in vars(module) for layer in step.layers for module in layer.modules())


def _fits(step: LlamaStep, cache: KeyValueCache) -> bool:
    norms = [step.norm, *(norm for layer in step.layers for norm in _norms(layer))]
    kept = [each for pair in cache.layers.values() for each in pair]
    shape = (cache.batch, step.groups, cache.length, step.cos.shape[-1])
    return (
        cache.batch <= FEW_ROWS
        and len(cache.layers) == len(step.layers)
        and len({norm.variance_epsilon for norm in norms}) == 1
        and len({layer.self_attn.scaling for layer in step.layers}) == 1
        and {each.dtype for each in kept} in ({torch.float32}, {torch.bfloat16})
        and all(each.device.type == "cpu" and each.is_contiguous() and each.shape == shape for each in kept)
    )


def _norms(layer: Any) -> tuple[Any, Any]:
    return layer.input_layernorm, layer.post_attention_layernorm
