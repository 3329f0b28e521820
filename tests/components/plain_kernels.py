"""What the kernels of `core.native.kernels` compute, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu


def product(
    source: Tensor,
    weight: Tensor,
    *,
    norm: Tensor | None = None,
    squares: Tensor | None = None,
    epsilon: float = 0.0,
    added: Tensor | None = None,
    gated: bool = False,
    later: Tensor | None = None,
    arrived: Tensor | None = None,
) -> Tensor:
    rows = source.float()
    if norm is not None:
        rows = rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + epsilon) * norm.float()
    if squares is not None:
        rows = rows * torch.rsqrt(squares.sum(0)[:, None] / rows.shape[1] + epsilon)
    answer = rows @ weight.float().T
    if gated:
        gates, others = answer.chunk(2, -1)
        answer = silu(gates) * others
    return answer.to(source.dtype) if added is None else (answer + added.float()).to(source.dtype)


def carrying(
    source: Tensor, weight: Tensor, added: Tensor, following: Tensor, **_: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    answer = product(source, weight, added=added)
    return answer, answer * following, summed_squares(answer)


def summed_squares(rows: Tensor) -> Tensor:
    """Return the squares of rows [B, N], summed up 16 at a time [N / 16, B]."""
    squares = rows.float().square()
    squares = torch.cat((squares, squares.new_zeros(len(squares), -squares.shape[1] % 16)), 1)
    return squares.unflatten(1, (-1, 16)).sum(2).T.contiguous()


def normed(source: Tensor, norm: Tensor, epsilon: float) -> Tensor:
    rows = source.float()
    rows = rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + epsilon)
    return rows.to(source.dtype) * norm


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
    later: Tensor | None = None,
    fresh: bool = True,
    **_: int,
) -> Tensor:
    rows, both, length, width = cache.shape
    groups = both // 2
    states = mixed.view(rows, heads + both, width).float()
    cos, sin = cosines[at].float()[:, None], sines[at].float()[:, None]
    turning = states[:, : heads + groups]
    turned = turning * cos + turning.roll(width // 2, -1) * sin
    new = torch.cat((turned[:, heads:], states[:, heads + groups :]), 1)
    cache.index_copy_(2, slot, new.to(cache.dtype)[:, :, None])
    keys, values = cache.float().repeat_interleave(heads // groups, 1).chunk(2, 1)
    scores = torch.einsum("bhd,bhsd->bhs", turned[:, :heads], keys) * scale
    slots = torch.arange(length, device=mixed.device)
    counts = (slots < slot).expand(rows, length).clone()
    if seen is not None:
        reach = seen.shape[-1]
        counts[:, :reach] &= seen[:, 0, 0]
    counts |= slots == slot
    shares = scores.masked_fill(~counts[:, None], float("-inf")).softmax(-1)
    return torch.einsum("bhs,bhsd->bhd", shares, values).reshape(rows, -1).to(mixed.dtype)
