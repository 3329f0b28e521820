"""Group norm, SiLU, biases and sums of a frozen encoder on a GPU, in Triton: channels last, one pass each.

Convolutions take less time on an H200 than what lies between them: torch turns pictures over for each norm
and back for each convolution, adds biases apart, and passes over them once more for SiLU. Here pictures
[N, C, H, W] lie channels last throughout; a norm reads twice and writes once.

Import it where Triton is installed. On a CPU the kernels run in Triton's interpreter alone.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_PARTS = 64
"""Parts of a picture that are measured apart, at most."""

_TILE = 4096
"""Values that a program meets at once."""


@triton.jit
def _measure_kernel(
    x, bias, measured, places, part,
    C: tl.constexpr, GROUPS: tl.constexpr, TILE: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """Add up values, and their squares, of each group of channels in one part of a picture."""
    n, number = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = tl.arange(0, C)
    totals = tl.zeros((TILE, C), tl.float32)
    squares = tl.zeros((TILE, C), tl.float32)
    last = tl.minimum((number + 1) * part, places)
    for start in range(number * part, last, TILE):
        p = start + tl.arange(0, TILE)
        inside = (p < last)[:, None]
        values = tl.load(x + (n * places + p)[:, None] * C + c[None, :], inside, 0.0).to(tl.float32)
        if BIASED:
            values += tl.load(bias + c).to(tl.float32)[None, :]
        values = tl.where(inside, values, 0.0)
        totals += values
        squares += values * values
    g = tl.arange(0, GROUPS)
    at = measured + ((n * tl.num_programs(1) + number) * GROUPS + g) * 2
    tl.store(at, tl.sum(tl.reshape(tl.sum(totals, 0), (GROUPS, C // GROUPS)), 1))
    tl.store(at + 1, tl.sum(tl.reshape(tl.sum(squares, 0), (GROUPS, C // GROUPS)), 1))


@triton.jit
def _norm_kernel(
    x, bias, measured, weight, offset, result, places, part, epsilon,
    C: tl.constexpr, GROUPS: tl.constexpr, TILE: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """Norm one part of a picture by what was measured of the whole, and pass it through SiLU."""
    n, number = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = tl.arange(0, C)
    at = measured + (n * GROUPS + c // (C // GROUPS)) * 2
    count = places * (C // GROUPS)
    mean, square = tl.load(at) / count, tl.load(at + 1) / count
    scale = tl.load(weight + c).to(tl.float32) * tl.rsqrt(tl.maximum(square - mean * mean, 0.0) + epsilon)
    shift = tl.load(offset + c).to(tl.float32) - mean * scale
    if BIASED:
        shift += tl.load(bias + c).to(tl.float32) * scale
    last = tl.minimum((number + 1) * part, places)
    for start in range(number * part, last, TILE):
        p = start + tl.arange(0, TILE)
        inside = (p < last)[:, None]
        place = (n * places + p)[:, None] * C + c[None, :]
        values = tl.load(x + place, inside, 0.0).to(tl.float32) * scale[None, :] + shift[None, :]
        values = values / (1 + tl.exp(-values))
        tl.store(result + place, values.to(result.dtype.element_ty), inside)


@triton.jit
def _add_kernel(
    x, bias, other, result, places, C: tl.constexpr, TILE: tl.constexpr, ADDED: tl.constexpr
):  # fmt: skip
    """Add a bias to every channel, and another picture where there is one."""
    p = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    c = tl.arange(0, C)
    inside = (p < places)[:, None]
    place = p[:, None] * C + c[None, :]
    total = tl.load(x + place, inside, 0.0).to(tl.float32) + tl.load(bias + c).to(tl.float32)[None, :]
    if ADDED:
        total += tl.load(other + place, inside, 0.0).to(tl.float32)
    tl.store(result + place, total.to(result.dtype.element_ty), inside)


def normed(
    x: Tensor, bias: Tensor | None, weight: Tensor, offset: Tensor, groups: int, epsilon: float
) -> Tensor:
    """Return SiLU of the group norm of `x` plus a bias a channel [C]; [N, C, H, W] lie channels last."""
    number, channels, height, width = x.shape
    places = height * width
    tile = max(1, _TILE // channels)
    part = triton.cdiv(triton.cdiv(places, _PARTS), tile) * tile
    parts = triton.cdiv(places, part)
    measured = torch.empty(number, parts, groups, 2, dtype=torch.float32, device=x.device)
    _measure_kernel[number, parts](x, bias, measured, places, part, channels, groups, tile, bias is not None)
    result = torch.empty_like(x)
    _norm_kernel[number, parts](
        x, bias, measured.sum(1), weight, offset, result, places, part, epsilon,
        channels, groups, tile, bias is not None,
    )  # fmt: skip
    return result


def added(x: Tensor, bias: Tensor, other: Tensor | None = None) -> Tensor:
    """Return `x` plus a bias a channel [C], plus another picture; [N, C, H, W] lie channels last."""
    result = torch.empty_like(x)
    channels = x.shape[1]
    places, tile = x.numel() // channels, max(1, _TILE // channels)
    _add_kernel[triton.cdiv(places, tile),](x, bias, other, result, places, channels, tile, other is not None)
    return result
