"""Residual codebooks that learn as running means. Source: SoundStream (2107.03312), section III-C.

Each codebook quantises what the ones before it left over. No gradient reaches a code: it moves to the mean of
the frames that chose it, and starts again at one of the batch's when too few do.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from janus_plugins.core.accumulation import CountsBatches
from janus_plugins.core.errors import RunFileError


class ResidualQuantizer(CountsBatches, nn.Module):
    """Replace frames [P, C] by Q codes each.

    Attributes:
        vectors: the codes' vectors [Q, K, C].
        sums: running sums of the frames that chose a code [Q, K, C].
        counts: running numbers of them, frames a step [Q, K].
    """

    vectors: Tensor
    sums: Tensor
    counts: Tensor
    new_sums: Tensor
    new_counts: Tensor

    def __init__(self, codebooks: int, size: int, width: int, decay: float, restart_below: float) -> None:
        super().__init__()
        self.decay, self.restart_below = decay, restart_below
        self.register_buffer("vectors", 0.1 * torch.randn(codebooks, size, width))
        self.register_buffer("sums", torch.zeros(codebooks, size, width))
        self.register_buffer("counts", torch.zeros(codebooks, size))
        # What the batches of a step have given so far.
        self.register_buffer("new_sums", torch.zeros(codebooks, size, width), persistent=False)
        self.register_buffer("new_counts", torch.zeros(codebooks, size), persistent=False)

    def forward(self, frames: Tensor, learn: bool = False) -> tuple[Tensor, Tensor]:
        """Return codes [P, Q] and the sum of their vectors [P, C], without a gradient.

        Args:
            frames: [P, C].
            learn: also move the codebooks towards these frames, once a step.

        Raises:
            RunFileError: they should learn, but are kept in 16 bits.
        """
        if learn and self.vectors.dtype != torch.float32:
            raise RunFileError(
                f"the codec's codebooks learn as running means, too fine for {self.vectors.dtype}; "
                "train it with engine.precision: fp32, and load it into other runs by weights"
            )
        ends = learn and self.ends_step()
        left = frames.detach().to(self.vectors.dtype)
        found, summed = [], torch.zeros_like(left)
        for place in range(len(self.vectors)):
            if learn:
                self._restart(place, left)
            codes = torch.cdist(left.float(), self.vectors[place].float()).argmin(-1)
            chosen = self.vectors[place][codes]
            if learn:
                self._move(place, left, codes, ends)
            left, summed = left - chosen, summed + chosen
            found.append(codes)
        return torch.stack(found, -1), summed

    def summed(self, codes: Tensor) -> Tensor:
        """Return the sum of the vectors [P, C] of codes [P, Q]."""
        return torch.stack([self.vectors[place][codes[:, place]] for place in range(len(self.vectors))]).sum(
            0
        )

    @torch.no_grad()
    def _restart(self, place: int, frames: Tensor) -> None:
        """Put codes that are hardly chosen, at first all, onto frames of the batch, on all ranks the same."""
        drawn = frames[torch.randint(len(frames), (self.vectors.shape[1],), device=frames.device)]
        if _ranks():
            torch.distributed.broadcast(drawn, 0)
        rare = (self.counts[place] < self.restart_below)[:, None]
        self.vectors[place] = torch.where(rare, drawn, self.vectors[place])
        self.sums[place] = torch.where(rare, drawn, self.sums[place])
        self.counts[place] = torch.where(rare[:, 0], 1.0, self.counts[place])

    @torch.no_grad()
    def _move(self, place: int, frames: Tensor, codes: Tensor, ends: bool) -> None:
        """Take the frames that chose each code into its running mean, at a step's end those of all ranks."""
        sums, counts = self.new_sums[place], self.new_counts[place]
        sums.index_add_(0, codes, frames)
        counts.index_add_(0, codes, torch.ones_like(frames[:, 0]))
        if not ends:
            return
        if _ranks():
            torch.distributed.all_reduce(sums)
            torch.distributed.all_reduce(counts)
        self.sums[place].lerp_(sums, 1 - self.decay)
        self.counts[place].lerp_(counts, 1 - self.decay)
        self.vectors[place] = self.sums[place] / self.counts[place][:, None].clamp_min(1e-6)
        sums.zero_()
        counts.zero_()


def _ranks() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
