"""Rotary angles of the kind `longrope` for each sample by its own length, whatever runs beside it.

transformers turns a whole batch by the factors for long sequences as soon as one row of it is longer than
those that the model first learnt from (LongRoPE, arXiv 2402.13753); a sample alone it turns by its own. An
answer that outgrows them is run anew from its first slot on, as transformers' generation does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from janus_plugins.core.contracts import Cached
from janus_plugins.core.errors import RunFileError
from janus_plugins.language_models.cache import KeyValueCache, one_by_one

_GIVEN = -1
"""The layer of a cache that holds what was given: it moves with the keys and values of the others."""


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


def each_by_its_length(body: Any) -> int | None:
    """Let a body whose angles are of this kind choose them for each sample.

    Returns:
        The longest sequence that is a short one; None where all sequences have the same angles.
    """
    rope = getattr(body.config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope" or not hasattr(body, "rotary_emb"):
        return None
    original: int = rope["original_max_position_embeddings"]
    body.rotary_emb = EachByItsLength(body.rotary_emb, original)
    return original


def outgrown(
    embeds: Tensor, positions: Tensor, plan: Cached, cache: KeyValueCache, original: int
) -> tuple[Tensor, Tensor, Cached] | None:
    """Note new slots in a cache; return all there are, if a row's earlier ones have other angles by now.

    Args:
        embeds: input embeddings of the new slots [B, S, M].
        positions: theirs [B, S], or [1, S].
        plan: what they see.
        cache: of the earlier slots.
        original: the longest sequence that is a short one.

    Returns:
        Embeddings [B, L, M], positions [B, L] and plan of all slots so far, to be run in the place of the new
        ones; or None.

    Raises:
        RunFileError: they would have to run anew in another order than one by one.
    """
    at = positions.expand(len(embeds), -1)[:, None]
    given, noted = cache.update(_GIVEN, embeds[:, None], torch.stack((at, at), -1), plan.start)
    places, turned = noted[:, 0].unbind(-1)
    seen = torch.ones_like(places, dtype=torch.bool)
    if plan.visible is not None:
        seen = plan.visible.any(1) if plan.visible.dim() == 3 else plan.visible
    long = (places.where(seen, 0).amax(1, keepdim=True) >= original).long()
    changed = plan.start > 0 and bool(((turned != long) & seen)[:, : plan.start].any())
    turned.copy_(long.expand_as(turned))
    if not changed:
        return None
    if not one_by_one(plan):
        raise RunFileError(
            f"this language model turns sequences of more than {original} positions by other angles "
            "(longrope), so that one that outgrows them runs anew, but slots are decoded here in another "
            "order than one by one (parallel, or decoding: zigzag); leave that out, or choose another "
            "language model"
        )
    return given[:, 0], places, Cached(0, plan.visible)


def _longest(positions: Tensor) -> Tensor:
    """Return the largest position of each slot's own sample [R, S]."""
    sample = (positions == 0).cumsum(-1)
    empty = positions.new_zeros(*positions.shape[:-1], positions.shape[-1] + 1)
    return empty.scatter_reduce(-1, sample, positions, "amax").gather(-1, sample)
