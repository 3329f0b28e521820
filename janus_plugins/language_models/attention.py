"""Attention of a packed batch and of a decoding step, called from inside transformers' layers.

transformers calls the function registered under `NAME` and, because no mask function has that name,
builds no mask; it is never given a cache either. Its own packing leaks from sample to sample as
soon as it makes one: two packed samples then differ by up to 2.0 in their logits.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from janus_plugins.core.contracts import Packed
from janus_plugins.core.devices import without_plans
from janus_plugins.core.errors import RunFileError
from janus_plugins.language_models.cache import CachedAttention

NAME = "janus_plugins"

_UNSAID = -1
"""In the place of a window of which a layer says nothing, not even that there is none."""

_SHARES_HEADS = "enable_gqa" in inspect.signature(varlen_attn).parameters
"""Whether torch's variable-length kernel reads keys that heads share; torch 2.11 has them repeated."""


class Attend(Protocol):
    """Attend within one forward pass; shared by its layers."""

    reach: int
    """Positions that the last query may look back to."""
    by_layer: bool
    """Whether it needs to know which layer asks."""

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, dropout: float
    ) -> Tensor:
        """Return [B, S, H, D] of query [B, H, S, D], key and value [B, G, S, D] (G divides H)."""
        ...


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    attend: Attend | None = None,
    sliding_window: int | None = _UNSAID,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Answer transformers' attention call: ([B, S, H, D], no weights)."""
    # No mask is built for this attention: one that comes all the same is the layer's own.
    if attend is None or softcap is not None or s_aux is not None or attention_mask is not None:
        raise RunFileError(
            f"{type(module).__name__} needs attention that this package does not have (soft caps, sinks or "
            "masks of its own), or does not pass arguments on to it; choose another language model"
        )
    if sliding_window == _UNSAID:
        sliding_window = _window(module)
    if sliding_window is not None and isinstance(attend, CachedAttention):
        attend = attend.within(sliding_window)
    elif sliding_window is not None and attend.reach > sliding_window:
        raise RunFileError(
            f"{type(module).__name__} looks back {sliding_window} positions only, but a sequence here has "
            f"{attend.reach}; lower the stage's max_length or choose another language model"
        )
    # Asked only where it counts: each number would be a case of its own to a compiler.
    layer: int = module.layer_idx if attend.by_layer else 0  # type: ignore[assignment]
    return attend(layer, query, key, value, scale=scaling, dropout=dropout), None


def _window(module: nn.Module) -> int | None:
    """Return how far a layer looks back where only transformers' masks are told (Phi-MoE, Qwen2-MoE)."""
    config: Any = getattr(module, "config", None)
    window: int | None = getattr(config, "sliding_window", None) or None
    kinds = getattr(config, "layer_types", None) if window else None
    return window if not kinds or kinds[module.layer_idx] == "sliding_attention" else None


AttentionInterface.register(NAME, attention)


def flatten(states: Tensor) -> Tensor:
    """Return [B * S, H, D] of [B, H, S, D]."""
    batch, heads, slots, width = states.shape
    return states.transpose(1, 2).reshape(batch * slots, heads, width)


class Grouped:
    """Run one SDPA for each group of segments alike: causal, or under a mask that all of them share.

    Padding slots give zeros.
    """

    by_layer = False

    def __init__(self, packed: Packed) -> None:
        self.reach = max((group.shape[1] for group in packed.groups), default=0)
        self.shapes = [tuple(group.shape) for group in packed.groups]
        self.masks = [_mask(reach) for reach in packed.reach or [None] * len(self.shapes)]
        self.order = torch.cat([group.reshape(-1) for group in packed.groups]) if packed.groups else None

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, dropout: float
    ) -> Tensor:
        """Gather each segment, attend within it, and scatter the result back."""
        del layer
        batch, heads, slots, _ = query.shape
        if self.order is None:  # a rank without samples: nothing is seen, and everything stays in the graph
            return query.transpose(1, 2) * 0 + (key.sum() + value.sum()) * 0
        # One gather for all segments: its backward pass is one scatter, not one a length.
        states = [flatten(each).index_select(0, self.order) for each in (query, key, value)]
        sizes = [count * length for count, length in self.shapes]
        pieces = [torch.split(each, sizes) for each in states]
        outputs = []
        with without_plans(query.device):
            for (count, length), mask, *parts in zip(self.shapes, self.masks, *pieces, strict=True):
                rows = [part.view(count, length, *part.shape[1:]).transpose(1, 2) for part in parts]
                output = scaled_dot_product_attention(
                    rows[0],
                    rows[1],
                    rows[2],
                    attn_mask=mask,
                    is_causal=mask is None,
                    scale=scale,
                    dropout_p=dropout,
                    enable_gqa=heads != key.shape[1],
                )
                outputs.append(output.transpose(1, 2).reshape(count * length, heads, -1))
        joined = torch.cat(outputs)
        empty = joined.new_zeros(batch * slots, heads, joined.shape[-1])
        return empty.index_copy(0, self.order, joined).view(batch, slots, heads, -1)


def _mask(reach: Tensor | None) -> Tensor | None:
    """Return which slots of a segment see which [length, length], or None where that is causal."""
    if reach is None:
        return None
    return torch.arange(len(reach), device=reach.device) <= reach[:, None]


class Varlen:
    """Run torch's variable-length flash attention over the flat batch (GPU, 16 bits).

    A block that is compiled stays whole around it.
    """

    by_layer = False

    def __init__(self, packed: Packed) -> None:
        self.packed = packed
        self.reach = packed.max_length
        self.bounds = packed.cu_seqlens

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, dropout: float
    ) -> Tensor:
        """Attend causally within the segments of `cu_seqlens`; padding runs are segments too."""
        if dropout:  # the kernel has none
            grouped: Attend = Grouped(self.packed)
            return grouped(layer, query, key, value, scale=scale, dropout=dropout)
        batch, heads, slots, _ = query.shape
        shared = heads != key.shape[1]
        if shared and not _SHARES_HEADS:
            key, value = (each.repeat_interleave(heads // each.shape[1], 1) for each in (key, value))
        states = [flatten(each).contiguous() for each in (query, key, value)]
        gqa: dict[str, Any] = {"enable_gqa": shared} if _SHARES_HEADS else {}
        output = varlen_attn(
            states[0],
            states[1],
            states[2],
            self.bounds,
            self.bounds,
            self.reach,
            self.reach,
            scale=scale,
            window_size=(-1, 0),
            **gqa,
        )
        assert isinstance(output, Tensor)
        return output.view(batch, slots, heads, -1)


@functools.cache
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


class Flex:
    """Run compiled flex attention over the flat batch (GPU, any precision)."""

    by_layer = False

    def __init__(self, packed: Packed, slots: int) -> None:
        from torch.nn.attention.flex_attention import create_block_mask

        self.packed = packed
        self.reach = packed.max_length
        device = str(packed.cu_seqlens.device)
        self.mask = create_block_mask(flat_mask(packed, slots), None, None, slots, slots, device=device)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, dropout: float
    ) -> Tensor:
        """Attend within the segments of `cu_seqlens`, as far as each slot reaches."""
        if dropout:  # the kernel has none
            grouped: Attend = Grouped(self.packed)
            return grouped(layer, query, key, value, scale=scale, dropout=dropout)
        batch, heads, slots, _ = query.shape
        states = [flatten(each).transpose(0, 1)[None] for each in (query, key, value)]
        output = _compiled_flex()(
            *states, block_mask=self.mask, scale=scale, enable_gqa=heads != key.shape[1]
        )
        return output[0].transpose(0, 1).reshape(batch, slots, heads, -1)


def flat_mask(packed: Packed, slots: int) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return what flex attention asks, (batch, head, query, key) -> bool: whether a slot sees another."""
    bounds = packed.cu_seqlens
    at = torch.arange(slots, device=bounds.device)
    segment, last = torch.bucketize(at, bounds[1:], right=True), at
    for group, reach in zip(packed.groups, packed.reach or [None] * len(packed.groups), strict=True):
        if reach is not None:
            last = last.index_copy(0, group.reshape(-1), (group[:, :1] + reach).reshape(-1))

    def sees(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= last[query]) & (segment[query] == segment[key])

    return sees


def packed_attention(packed: Packed, embeds: Tensor, choice: str) -> Attend:
    """Choose the kernel of a packed batch by what the machine can do and what the options ask.

    Raises:
        RunFileError: the options ask for a kernel that cannot run here.
    """
    on_gpu = embeds.device.type == "cuda"
    fits_varlen = on_gpu and embeds.dtype in (torch.float16, torch.bfloat16)
    if choice == "varlen" and not fits_varlen:
        raise RunFileError(
            f"attention: varlen needs a GPU and 16 bits, but this is {embeds.dtype} on {embeds.device.type}; "
            "use attention: auto"
        )
    if choice == "flex" and not on_gpu:
        raise RunFileError("attention: flex needs a GPU; use attention: auto")
    if choice == "varlen" and packed.reach is not None:
        raise RunFileError(
            "attention: varlen is causal, but a generation path of this model predicts several codes at once "
            "(parallel), whose slots see one another; use attention: auto"
        )
    causal = packed.reach is None
    if choice == "varlen" or (choice == "auto" and fits_varlen and causal):
        return Varlen(packed)
    if choice == "flex":
        return Flex(packed, embeds.shape[0] * embeds.shape[1])
    return Grouped(packed)
