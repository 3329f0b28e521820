"""One decoding step of a Llama body, without what its layers do anew for every call.

At small sizes a step is mostly bookkeeping: hooks, views, norms in pieces, angles that every step
computes again. Here the same products run in the same order over the same weights; what a cache's
whole life shares is made once. Bodies of other families, and bodies that something hangs on (hooks,
a `forward` of somebody else, adapters in the place of layers, partitioned weights) or that were rebuilt
(layers left out, other activations), run through their own `forward`, which is the oracle.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaMLP,
    LlamaModel,
    LlamaRMSNorm,
)

from janus_plugins.core.devices import without_plans
from janus_plugins.core.native import on_gpu
from janus_plugins.language_models.cache import CachedAttention, KeyValueCache
from janus_plugins.language_models.joining import lie_together, whole_of
from janus_plugins.language_models.on_cpu import OnCpu

_LAYER: dict[str, type[nn.Module]] = {
    "": LlamaDecoderLayer,
    "input_layernorm": LlamaRMSNorm,
    "self_attn": LlamaAttention,
    **{f"self_attn.{name}_proj": nn.Linear for name in "qkvo"},
    "post_attention_layernorm": LlamaRMSNorm,
    "mlp": LlamaMLP,
    **{f"mlp.{name}_proj": nn.Linear for name in ("gate", "up", "down")},
    "mlp.act_fn": type(ACT2FN["silu"]),
}
"""What a layer consists of, by name."""

_STATIC_ROPES = ("default", "linear", "llama3")
"""Kinds of rotary angles that depend on the position alone, not on how long a sequence has become."""


def can_step(body: nn.Module) -> bool:
    """Answer whether a body is a whole, untouched Llama."""
    if type(body) is not LlamaModel:
        return False
    config: Any = body.config
    if config.hidden_act != "silu":
        return False
    rope = config.rope_parameters
    if rope["rope_type"] not in _STATIC_ROPES:
        return False
    # A cache keeps keys and values by a layer's own number; a step counts.
    layers = list(body.get_submodule("layers").children())
    numbers = [getattr(getattr(layer, "self_attn", None), "layer_idx", None) for layer in layers]
    whole = numbers == list(range(config.num_hidden_layers)) and type(body.norm) is LlamaRMSNorm
    alike = all(_kinds(layer) == _LAYER for layer in layers)
    own = (module for module in body.modules() if module is not body.rotary_emb)
    return whole and alike and all(map(_untouched, own))


def join_weights(body: Any) -> None:
    """Move the weights of a body that `can_step` accepts to where a step reads them in fewer products."""
    for layer in body.layers:
        for layers in _of_one_input(layer):
            lie_together(layers)


def _of_one_input(layer: Any) -> tuple[tuple[nn.Linear, ...], tuple[nn.Linear, ...]]:
    block, mlp = layer.self_attn, layer.mlp
    return (block.q_proj, block.k_proj, block.v_proj), (mlp.gate_proj, mlp.up_proj)


def _kinds(layer: nn.Module) -> dict[str, type[nn.Module]]:
    return {name: type(module) for name, module in layer.named_modules()}


def _untouched(module: nn.Module) -> bool:
    hooked = module._forward_hooks or module._forward_pre_hooks
    whole = all(parameter.numel() for parameter in module.parameters(recurse=False))
    return not hooked and whole and not _has_another_forward(module)


def _has_another_forward(module: nn.Module) -> bool:
    """Answer whether somebody put another function in the place of a module's `forward`.

    Whoever runs the model puts there what `stands_in` for it, with the same arithmetic (`inference.linears`).
    """
    own = vars(module).get("forward")
    return own is not None and not getattr(own, "stands_in", False)


class LlamaStep:
    """Run one slot a row through a Llama's layers and a cache; on some CPUs a few slots a row (`takes`).

    Args:
        body: a body that `can_step` accepts.
        cache: the cache that the steps write to; its length bounds the positions.
    """

    def __init__(self, body: Any, cache: KeyValueCache) -> None:
        self.norm = body.norm
        self.layers = list(body.layers)
        config = body.config
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        shared = [_of_one_input(layer) for layer in self.layers]
        self.qkvs = [_side_by_side(*layers) for layers, _ in shared]
        self.gate_ups = [_side_by_side(*layers) for _, layers in shared]
        self.cache = cache
        self.cos, self.sin = self._angles(body, cache.length)
        self.on_gpu = _OnGpu.of(self)
        self.on_cpu: OnCpu | Literal[False] | None = None

    def _angles(self, body: Any, length: int) -> tuple[Tensor, Tensor]:
        """Return cosines and signed sines [length, D], of every position there can be."""
        like = next(body.parameters())
        positions = torch.arange(length, device=like.device)[None]
        cos, sin = body.rotary_emb(like, positions)
        half = sin.shape[-1] // 2
        # Rotating by halves is rolling by half, with the sign of the first half in the sine.
        return cos[0], torch.cat((-sin[0, :, :half], sin[0, :, half:]), -1)

    def takes(self, embeds: Tensor, attend: CachedAttention) -> bool:
        """Answer whether it runs slots [B, S, M] of a plan."""
        return embeds.shape[1] == 1 or self._in_c(embeds, attend) is not None

    def _in_c(self, embeds: Tensor, attend: CachedAttention) -> OnCpu | None:
        if torch.compiler.is_compiling():
            return None
        if self.on_cpu is None:
            self.on_cpu = OnCpu.of(self) or False
        return self.on_cpu if self.on_cpu and self.on_cpu.takes(embeds, attend) else None

    def __call__(self, embeds: Tensor, positions: Tensor, attend: CachedAttention) -> Tensor:
        """Return hidden states after the final norm [B, S, M]; see `core.contracts.LanguageModel`."""
        on_cpu = self._in_c(embeds, attend)
        if on_cpu is not None:
            return on_cpu(embeds, positions, attend)
        at = positions[:, 0]
        if self.on_gpu is not None and attend.slot is not None and torch.compiler.is_compiling():
            return self.on_gpu(self, embeds[:, 0], at, attend)[:, None]
        cos, sin = self.cos[at][:, None], self.sin[at][:, None]
        stream = embeds[:, 0]
        for index, layer in enumerate(self.layers):
            stream = _sum(stream, self._attention(index, layer, stream, cos, sin, attend))
            gates, ups = self.gate_ups[index](_normed(layer.post_attention_layernorm, stream)).chunk(2, -1)
            stream = _sum(stream, layer.mlp.down_proj.forward(silu(gates).mul_(ups)))
        return _normed(self.norm, stream)[:, None]

    def _attention(
        self, index: int, layer: Any, stream: Tensor, cos: Tensor, sin: Tensor, attend: CachedAttention
    ) -> Tensor:
        """Return what a layer's attention adds [B, M]; writes the slot's key and value."""
        rows, turning = len(stream), self.heads + self.groups
        mixed = self.qkvs[index](_normed(layer.input_layernorm, stream)).view(rows, turning + self.groups, -1)
        value = mixed[:, turning:]
        if _compiled_for_device(stream):
            # Keys are turned where they are written, queries where they are read.
            query = _turn(mixed[:, : self.heads], cos, sin)
            key = _turn(mixed[:, self.heads : turning], cos, sin)
        else:
            turned = _turn(mixed[:, :turning], cos, sin)
            query, key = turned[:, : self.heads], turned[:, self.heads :]
        keys, values = self.cache.update(index, key[:, :, None], value[:, :, None], attend.start, attend.slot)
        output = _look(query, keys, values, attend.mask, layer.self_attn.scaling)
        result: Tensor = layer.self_attn.o_proj.forward(output.reshape(rows, -1))
        return result


_Carried = tuple[Tensor, Tensor] | None
"""Rows times the weight of the norm that follows, and sums of their squares, for the product after it."""


class _OnGpu:
    """Run the same step by kernels made for a few rows on a GPU (`on_gpu`).

    Args:
        shared: of every layer the weight of queries, keys and values, and that of gates and others.
        step: the step.
    """

    def __init__(self, shared: list[tuple[Tensor, Tensor]], step: LlamaStep) -> None:
        rows = step.cache.batch
        self.shared = shared
        self.multiplies = rows <= on_gpu.MOST
        self.carries = on_gpu.carries(rows, step.norm.weight.dtype)
        self.later = _read_later(step.layers, shared, on_gpu.ahead_of(rows))
        blocks = max(len(weight) for pair in shared for weight in pair) // on_gpu.BLOCK + 1
        counters = max(rows * step.heads, blocks)
        self.arrived = torch.zeros(counters, dtype=torch.int32, device=step.cos.device)

    @classmethod
    def of(cls, step: LlamaStep) -> _OnGpu | None:
        """Return the way of a step that fits the kernels, or None."""
        if not on_gpu.has_kernels(step.cos.device):
            return None
        shared = []
        for layer in step.layers:
            first, second = (whole_of(layers) for layers in _of_one_input(layer))
            others = (layer.self_attn.o_proj, layer.mlp.down_proj)
            if first is None or second is None or not all(each.weight.is_contiguous() for each in others):
                return None
            if any(bias is not None for bias in (first[1], second[1], *(each.bias for each in others))):
                return None
            shared.append((first[0], second[0]))
        width = step.cos.shape[-1]
        return cls(shared, step) if width in on_gpu.WIDTHS else None

    def __call__(self, step: LlamaStep, stream: Tensor, at: Tensor, attend: CachedAttention) -> Tensor:
        """Return hidden states after the final norm [B, M] of a stream [B, M] at positions [B]."""
        visible = attend.mask if attend.padded else None  # the kernels leave out by themselves what follows
        carried: _Carried = None
        firsts: list[Any] = [layer.input_layernorm for layer in step.layers]
        for index, layer in enumerate(step.layers):
            block, mlp, second = layer.self_attn, layer.mlp, layer.post_attention_layernorm
            (qkv, gate_up), cache = self.shared[index], step.cache.both(index)
            later = self.later[index]
            mixed = self._of_normed(stream, carried, firsts[index], qkv, later[0])
            seen = on_gpu.look(
                mixed, step.cos, step.sin, at, cache, attend.slot, visible, self.arrived, step.heads,
                block.scaling, later[1], index == 0,
            )  # fmt: skip
            stream, carried = self._added_to(stream, seen, block.o_proj, later[2], second)
            inner = self._of_normed(stream, carried, second, gate_up, later[3], gated=True)
            following = firsts[index + 1] if index + 1 < len(firsts) else None
            stream, carried = self._added_to(stream, inner, mlp.down_proj, later[4], following)
        if step.norm.weight.dtype != stream.dtype:
            return _normed(step.norm, stream)
        last: Tensor = on_gpu.normed(stream, step.norm.weight, step.norm.variance_epsilon)
        return last

    def _of_normed(
        self,
        stream: Tensor,
        carried: _Carried,
        norm: Any,
        weight: Tensor,
        later: Tensor | None,
        gated: bool = False,
    ) -> Tensor:
        """Return rows normed, by what was carried if it was, times a weight, and gated."""
        if self.multiplies:
            source, squares = (stream, None) if carried is None else carried
            scale = norm.weight if carried is None else None
            answer: Tensor = on_gpu.product(
                source, weight, scale, squares, norm.variance_epsilon, None, gated, later, self.arrived
            )
            return answer
        answer = linear(_normed(norm, stream), weight)
        if not gated:
            return answer
        gates, others = answer.chunk(2, -1)
        return silu(gates) * others

    def _added_to(
        self, stream: Tensor, source: Tensor, layer: nn.Linear, later: Tensor | None, following: Any
    ) -> tuple[Tensor, _Carried]:
        """Return the stream with rows times a weight added, and what it carries for the norm that follows."""
        if not self.multiplies:
            return _sum(stream, linear(source, layer.weight)), None
        if following is None or not self.carries:
            answer = on_gpu.product(source, layer.weight, None, None, 0.0, stream, False, later, self.arrived)
            return answer, None
        answer, weighted, squares = on_gpu.carrying(
            source, layer.weight, stream, following.weight, later, self.arrived
        )
        return answer, (weighted, squares)


def _read_later(
    layers: list[Any], shared: list[tuple[Tensor, Tensor]], ahead: on_gpu.Ahead
) -> list[list[Tensor | None]]:
    """Return, by layer and kernel, the numbers that the kernel has brought near for those after it."""

    def some(weight: Tensor | None, size: int, first: int = 0) -> Tensor | None:
        if weight is None or size == 0:
            return None
        each = weight.element_size()
        numbers = weight.detach().view(-1)[first // each : (first + size) // each]
        return numbers if len(numbers) else None

    firsts = [qkv for qkv, _ in shared[1:]]
    return [
        [
            some(layer.self_attn.o_proj.weight, ahead.qkv),
            some(gate_up, ahead.look),
            some(gate_up, ahead.out, ahead.look),
            some(layer.mlp.down_proj.weight, ahead.gate_up),
            some(following, ahead.down),
        ]
        for layer, (_, gate_up), following in zip(layers, shared, [*firsts, None], strict=True)
    ]


def _side_by_side(*layers: nn.Linear) -> Callable[[Tensor], Tensor]:
    """Return layers of one input as one product, where whoever runs the model offers that."""
    offered = getattr(layers[0].forward, "joined", None)
    joined: Callable[[Tensor], Tensor] | None = offered(layers) if offered else None
    if joined is not None:
        return joined
    whole = whole_of(layers)
    if whole is not None:
        return functools.partial(linear, weight=whole[0], bias=whole[1])
    return functools.partial(_all_of, layers)


def _all_of(layers: tuple[nn.Linear, ...], source: Tensor) -> Tensor:
    if torch.compiler.is_compiling() and source.device.type == "cpu":
        # Compiled for a CPU weights are constants, so they are joined once, while compiling.
        bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
        return linear(source, torch.cat([layer.weight for layer in layers]), bias)
    return torch.cat([layer.forward(source) for layer in layers], -1)


def _look(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attend from one slot a row: query [B, H, D], keys and values [B, G, S, D] -> [B, H, D]."""
    (rows, heads, width), groups = query.shape, keys.shape[1]
    if not torch.compiler.is_compiling():
        with without_plans(query.device):
            return scaled_dot_product_attention(
                query[:, :, None], keys, values, attn_mask=mask, scale=scale, enable_gqa=heads != groups
            )
    # Loops over one query are what a compiler fuses best; a kernel for many queries takes longer, and on a
    # GPU may compile for one length alone.
    shared = query.view(rows, groups, heads // groups, 1, width)
    scores = (keys[:, :, None].float() * shared).sum(-1) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    shares = scores.softmax(-1)[..., None]
    return (values[:, :, None] * shares).sum(3).to(query.dtype)


def _compiled_for_device(stream: Tensor) -> bool:
    """Answer whether this is being compiled for a device where each kernel costs, not for a CPU."""
    return torch.compiler.is_compiling() and stream.device.type != "cpu"


def _sum(stream: Tensor, change: Tensor) -> Tensor:
    if _compiled_for_device(stream):
        # A plain sum would become part of the product, which then copies the stream first.
        return (stream.float() + change.float()).to(stream.dtype)
    return stream + change


def _normed(norm: Any, stream: Tensor) -> Tensor:
    weight: Tensor = norm.weight
    if torch.compiler.is_compiling():
        whole = stream.float()
        whole = whole * torch.rsqrt(whole.square().mean(-1, keepdim=True) + norm.variance_epsilon)
        return weight * whole.to(stream.dtype)
    if stream.dtype != torch.float32:  # as transformers: normalise in fp32, then scale in the stream's own
        return weight * rms_norm(stream.float(), weight.shape, None, norm.variance_epsilon).to(stream.dtype)
    return rms_norm(stream, weight.shape, weight, norm.variance_epsilon)


def _turn(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate [B, H, D] by angles [B, 1, D]."""
    turned: Tensor = (heads * cos).add_(heads.roll(heads.shape[-1] // 2, -1).mul_(sin))
    return turned
