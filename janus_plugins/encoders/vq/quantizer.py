"""The codebook, the nearest code, and how the codebook learns. Source: LlamaGen, `VectorQuantizer`.

Codes and the vectors they stand for are compared at length 1, so that near means alike in direction.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from janus_plugins.core.accumulation import CountsBatches

_ROWS = 8192
"""Vectors that are compared with the whole codebook at a time."""


class Codebook(nn.Module):
    """Own the code vectors [K, C]; under ZeRO-3 they are present only inside `forward`."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(functional.normalize(torch.randn(size, width), dim=-1))

    def forward(self) -> Tensor:
        """Return the codes at length 1 [K, C]."""
        return functional.normalize(self.weight, dim=-1)


class Quantizer(CountsBatches, nn.Module):
    """Replace vectors by codes."""

    unused_for: Tensor
    used: Tensor

    def __init__(self, size: int, width: int, revive_after: int | None) -> None:
        super().__init__()
        self.embedding = Codebook(size, width)
        self.revive_after = revive_after
        if revive_after is not None:
            self.register_buffer("unused_for", torch.zeros(size, dtype=torch.int64))
            self.register_buffer("used", torch.zeros(size, dtype=torch.int64), persistent=False)

    @torch.no_grad()
    def nearest(self, vectors: Tensor, table: Tensor) -> Tensor:
        """Return the nearest row of table [K, C] to each of vectors [P, C], all at length 1: [P] (int64)."""
        parts = [(rows @ table.T).argmax(-1) for rows in torch.split(vectors, _ROWS)]
        return torch.cat(parts)

    def losses(self, vectors: Tensor, table: Tensor, ids: Tensor) -> dict[str, Tensor]:
        """Return unweighted losses of vectors [P, C] at length 1 quantised to table[ids]."""
        chosen = table[ids]
        losses = {
            "codebook": functional.mse_loss(chosen, vectors.detach()),
            "commitment": functional.mse_loss(vectors, chosen.detach()),
        }
        if self.revive_after is not None:
            losses["revive"] = self._revive(vectors.detach(), table, ids)
        return losses

    def _revive(self, vectors: Tensor, table: Tensor, ids: Tensor) -> Tensor:
        """Return the distance of long unused codes to the vectors nearest to them.

        A loss, not a new value: the optimiser keeps its own copy of the codebook (ZeRO, 16 bits) and
        would undo an assignment, and ranks would drift apart.
        """
        unused_for = self._count(ids) if self.training else self.unused_for
        assert self.revive_after is not None
        dead = torch.nonzero(unused_for >= self.revive_after)[:, 0]
        if not len(dead):
            return table.sum() * 0
        with torch.no_grad():
            target = vectors[self.nearest(table[dead], vectors)]
        return functional.mse_loss(table[dead], target)

    @torch.no_grad()
    def _count(self, ids: Tensor) -> Tensor:
        """Return for how many steps each code was not used, this one included; kept at the step's end."""
        self.used[ids] = 1
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.used, op=torch.distributed.ReduceOp.MAX)
        unused_for = (self.unused_for + 1) * (1 - self.used)
        if self.ends_step():
            self.unused_for.copy_(unused_for)
            self.used.zero_()
        return unused_for


def entropy_loss(vectors: Tensor, table: Tensor, temperature: float = 0.01) -> Tensor:
    """Return the mean entropy of each choice less the entropy of the mean choice. Source: LlamaGen.

    Args:
        vectors: [P, C] at length 1.
        table: codes [K, C] at length 1.
        temperature: how soft the choice is.
    """
    shares = (2 * vectors @ table.T / temperature).softmax(-1)
    single = -(shares * shares.clamp_min(1e-9).log()).sum(-1).mean()
    mean = shares.mean(0)
    return single + (mean * mean.clamp_min(1e-9).log()).sum()
