"""One decoding step of a Llama body, without what its layers do anew for every call.

At small sizes a step is mostly bookkeeping: hooks, views, norms in pieces, angles that every step
computes again. Here the same products run in the same order over the same weights; what a cache's
whole life shares is made once. Bodies of other families, and bodies that something hangs on (hooks,
adapters in the place of layers, partitioned weights), run through their own `forward`, which is the oracle.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaMLP,
    LlamaModel,
    LlamaRMSNorm,
)

from janus_plugins.language_models.cache import CachedAttention, KeyValueCache

_KINDS = (
    LlamaModel,
    LlamaDecoderLayer,
    LlamaAttention,
    LlamaMLP,
    LlamaRMSNorm,
    nn.Linear,
    nn.Embedding,
    nn.ModuleList,
)
_STATIC_ROPES = ("default", "linear", "llama3")
"""Kinds of rotary angles that depend on the position alone, not on how long a sequence has become."""


def can_step(body: nn.Module) -> bool:
    """Answer whether a body is a whole, untouched Llama."""
    if type(body) is not LlamaModel or body.config.hidden_act != "silu":
        return False
    rope: Any = body.config.rope_parameters
    if rope["rope_type"] not in _STATIC_ROPES:
        return False
    return all(_untouched(module) for module in body.modules() if module is not body.rotary_emb)


def _untouched(module: nn.Module) -> bool:
    bare = next(module.parameters(), None) is None and not list(module.children())
    known = bare or type(module) in _KINDS
    hooked = module._forward_hooks or module._forward_pre_hooks
    whole = all(parameter.numel() for parameter in module.parameters(recurse=False))
    return known and not hooked and whole


class LlamaStep:
    """Run one slot a row through a Llama's layers and a cache.

    Args:
        body: a body that `can_step` accepts.
        cache: the cache that the steps write to; its length bounds the positions.
    """

    def __init__(self, body: Any, cache: KeyValueCache) -> None:
        self.norm = body.norm
        self.layers = list(body.layers)
        config = body.config
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.cache = cache
        self.cos, self.sin = self._angles(body, cache.length)

    def _angles(self, body: Any, length: int) -> tuple[Tensor, Tensor]:
        """Return cosines and signed sines [length, D], of every position there can be."""
        like = next(body.parameters())
        positions = torch.arange(length, device=like.device)[None]
        cos, sin = body.rotary_emb(like, positions)
        half = sin.shape[-1] // 2
        # Rotating by halves is rolling by half, with the sign of the first half in the sine.
        return cos[0], torch.cat((-sin[0, :, :half], sin[0, :, half:]), -1)

    def __call__(self, embeds: Tensor, positions: Tensor, attend: CachedAttention) -> Tensor:
        """Return hidden states after the final norm [B, 1, M]; see `core.contracts.LanguageModel`."""
        at = positions[:, 0]
        cos, sin = self.cos[at][:, None], self.sin[at][:, None]
        stream = embeds[:, 0]
        for index, layer in enumerate(self.layers):
            stream = stream + self._attention(index, layer, stream, cos, sin, attend)
            mlp, normed = layer.mlp, _normed(layer.post_attention_layernorm, stream)
            gated = silu(mlp.gate_proj.forward(normed)).mul_(mlp.up_proj.forward(normed))
            stream = stream + mlp.down_proj.forward(gated)
        return _normed(self.norm, stream)[:, None]

    def _attention(
        self, index: int, layer: Any, stream: Tensor, cos: Tensor, sin: Tensor, attend: CachedAttention
    ) -> Tensor:
        """Return what a layer's attention adds [B, M]; writes the slot's key and value."""
        block, normed = layer.self_attn, _normed(layer.input_layernorm, stream)
        rows = len(stream)
        query = _turn(block.q_proj.forward(normed).view(rows, self.heads, -1), cos, sin)
        key = _turn(block.k_proj.forward(normed).view(rows, self.groups, -1), cos, sin)
        value = block.v_proj.forward(normed).view(rows, self.groups, -1)
        keys, values = self.cache.update(index, key[:, :, None], value[:, :, None], attend.start)
        output = scaled_dot_product_attention(
            query[:, :, None],
            keys,
            values,
            attn_mask=attend.mask,
            scale=block.scaling,
            enable_gqa=self.heads != self.groups,
        )
        result: Tensor = block.o_proj.forward(output.reshape(rows, -1))
        return result


def _normed(norm: Any, stream: Tensor) -> Tensor:
    weight: Tensor = norm.weight
    if stream.dtype != torch.float32:  # as transformers: normalise in fp32, then scale in the stream's own
        return weight * rms_norm(stream.float(), weight.shape, None, norm.variance_epsilon).to(stream.dtype)
    return rms_norm(stream, weight.shape, weight, norm.variance_epsilon)


def _turn(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate [B, H, D] by angles [B, 1, D]."""
    turned: Tensor = (heads * cos).add_(heads.roll(heads.shape[-1] // 2, -1).mul_(sin))
    return turned
