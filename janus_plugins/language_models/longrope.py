"""Rotary angles of the kind `longrope` for each sample by its own length, whatever runs beside it.

transformers turns a whole batch by the factors for long sequences as soon as one row of it is longer than
those that the model first learnt from (LongRoPE, arXiv 2402.13753); a sample alone it turns by its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class EachByItsLength(nn.Module):
    """Choose between the angles for short and for long sequences, sample by sample.

    Args:
        angles: a body's own, which chooses for a whole batch by its largest position.
        original: the longest sequence that is a short one.
    """

    def __init__(self, angles: nn.Module, original: int) -> None:
        super().__init__()
        self.angles, self.original = angles, original

    def forward(self, like: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines [R, S, D] of positions [R, S]; a sample of a row begins at position 0."""
        long = _longest(position_ids) >= self.original
        # What is clamped is not taken. If no sample is long, both are the same.
        short = self.angles(like, position_ids=position_ids.clamp(max=self.original - 1))
        pairs = zip(self.angles(like, position_ids=position_ids), short, strict=True)
        cos, sin = (torch.where(long[..., None], one, other) for one, other in pairs)
        return cos, sin


def each_by_its_length(body: Any) -> None:
    """Let a body whose angles are of this kind choose them for each sample."""
    rope = getattr(body.config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope" and hasattr(body, "rotary_emb"):
        body.rotary_emb = EachByItsLength(body.rotary_emb, rope["original_max_position_embeddings"])


def _longest(positions: Tensor) -> Tensor:
    """Return the largest position of each slot's own sample [R, S]."""
    sample = (positions == 0).cumsum(-1)
    empty = positions.new_zeros(*positions.shape[:-1], positions.shape[-1] + 1)
    return empty.scatter_reduce(-1, sample, positions, "amax").gather(-1, sample)
