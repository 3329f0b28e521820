"""A decoding step's parts that are kernels of their own on a GPU, as operators that a compiler leaves whole.

What each computes `kernels.py` says; where it is needed is known here, and Triton only imported then.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from janus_plugins.core.devices import launches_triton

OLDEST = (8, 0)
"""Compute capability from which the kernels are for: that which has instructions for bf16."""


FEW = 4
"""Rows up to which a product takes plain arithmetic; for more the tensor cores do it."""

BLOCK = 16
"""Outputs of a product that a program computes, at least, on the tensor cores."""

MOST = 64
"""Rows up to which products are kernels; those of more rows take their time in arithmetic."""

WIDTHS = (16, 32, 64, 128, 256)
"""How wide heads may be."""


class Ahead(NamedTuple):
    """Say how many bytes of weights each kernel of a layer has brought near for later ones.

    Attributes:
        qkv: the product to queries, keys and values, of the one after attention.
        look: attention, of the product to gates and others.
        out: the product after attention, of the same, further on.
        gate_up: the product to gates and others, of the one after.
        down: the last product, of the next layer's first.
    """

    qkv: int
    look: int
    out: int
    gate_up: int
    down: int


AHEAD = Ahead(qkv=4 << 20, look=0, out=0, gate_up=12 << 20, down=4 << 20)
"""Of few rows: what was quickest on an H200, of Janus-1.3B's layers."""

AHEAD_OF_MANY = Ahead(0, 0, 0, 0, 0)
"""Of more rows than a few: whatever was brought near, it took longer."""


CARRIED = False
"""Whether products carry the next norm. It has not been timed."""


def ahead_of(rows: int) -> Ahead:
    """Return what kernels for so many rows have brought near."""
    return AHEAD if rows <= FEW else AHEAD_OF_MANY


def carries(rows: int, kind: torch.dtype) -> bool:
    """Answer whether products carry the norms after them; numbers of fp16 could grow too large."""
    return CARRIED and rows > FEW and kind != torch.float16


def has_kernels(device: torch.device) -> bool:
    """Answer whether the kernels run on a device."""
    return launches_triton(device) and torch.cuda.get_device_capability(device) >= OLDEST


@functools.cache
def kernels() -> Any:
    """Return the module of kernels."""
    from janus_plugins.core.native import kernels

    return kernels


@torch.library.custom_op("janus_plugins::product", mutates_args=("arrived",))
def product(
    source: Tensor,
    weight: Tensor,
    norm: Tensor | None,
    squares: Tensor | None,
    epsilon: float,
    added: Tensor | None,
    gated: bool,
    later: Tensor | None,
    arrived: Tensor,
) -> Tensor:
    """Return rows [B, K] times a weight, normed before, gated or added to after; see `kernels.product`."""
    answer: Tensor = kernels().product(
        source, weight, norm=norm, squares=squares, epsilon=epsilon, added=added, gated=gated, later=later,
        arrived=arrived,
    )  # fmt: skip
    return answer


@product.register_fake
def _(
    source: Tensor,
    weight: Tensor,
    norm: Tensor | None,
    squares: Tensor | None,
    epsilon: float,
    added: Tensor | None,
    gated: bool,
    later: Tensor | None,
    arrived: Tensor,
) -> Tensor:
    return source.new_empty(source.shape[0], weight.shape[0] // (1 + gated))


@torch.library.custom_op("janus_plugins::plain_product", mutates_args=())
def plain_product(source: Tensor, weight: Tensor) -> Tensor:
    """Return rows [B, K] times a weight, whose inputs are not cut in parts; see `kernels.product`."""
    answer: Tensor = kernels().product(source, weight)
    return answer


@plain_product.register_fake
def _(source: Tensor, weight: Tensor) -> Tensor:
    return source.new_empty(source.shape[0], weight.shape[0])


@torch.library.custom_op("janus_plugins::carrying", mutates_args=("arrived",))
def carrying(
    source: Tensor, weight: Tensor, added: Tensor, following: Tensor, later: Tensor | None, arrived: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows [B, K] times a weight and added to, and what the next product's norm takes of them."""
    answer: tuple[Tensor, Tensor, Tensor] = kernels().carrying(
        source, weight, added, following, later=later, arrived=arrived
    )
    return answer


@carrying.register_fake
def _(
    source: Tensor, weight: Tensor, added: Tensor, following: Tensor, later: Tensor | None, arrived: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    rows, outputs = source.shape[0], weight.shape[0]
    squares = source.new_empty(-(-outputs // BLOCK), rows, dtype=torch.float32)
    return source.new_empty(rows, outputs), source.new_empty(rows, outputs), squares


@torch.library.custom_op("janus_plugins::normed", mutates_args=())
def normed(source: Tensor, norm: Tensor, epsilon: float) -> Tensor:
    """Return rows [B, K] normed, times a weight [K]; see `kernels.normed`."""
    answer: Tensor = kernels().normed(source, norm, epsilon)
    return answer


@normed.register_fake
def _(source: Tensor, norm: Tensor, epsilon: float) -> Tensor:
    return source.new_empty(source.shape)


@torch.library.custom_op("janus_plugins::look", mutates_args=("cache", "arrived"))
def look(
    mixed: Tensor,
    cosines: Tensor,
    sines: Tensor,
    at: Tensor,
    cache: Tensor,
    slot: Tensor,
    seen: Tensor | None,
    arrived: Tensor,
    heads: int,
    scale: float,
    later: Tensor | None,
    fresh: bool,
) -> Tensor:
    """Return what one new slot a row sees [B, H * D]; see `kernels.look`."""
    answer: Tensor = kernels().look(
        mixed, cosines, sines, at, cache, slot, seen, arrived, heads, scale, later, fresh
    )
    return answer


@look.register_fake
def _(
    mixed: Tensor,
    cosines: Tensor,
    sines: Tensor,
    at: Tensor,
    cache: Tensor,
    slot: Tensor,
    seen: Tensor | None,
    arrived: Tensor,
    heads: int,
    scale: float,
    later: Tensor | None,
    fresh: bool,
) -> Tensor:
    return mixed.new_empty(mixed.shape[0], heads * cache.shape[3])
