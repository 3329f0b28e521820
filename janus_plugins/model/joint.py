"""Call an adapter: with the lengths of its items where it takes them, and only where they differ."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def takes_lengths(adapter: nn.Module) -> bool:
    """Answer whether an adapter's `forward` declares the argument `lengths`."""
    return "lengths" in inspect.signature(adapter.forward).parameters


def adapt(adapter: nn.Module, source: Tensor, lengths: Sequence[int] | None) -> Tensor:
    """Return an adapter's embeddings [N, T', M] of features [N, T, C].

    Args:
        adapter: see `core.contracts.Adapter`.
        source: the features.
        lengths: how many of each item's features count, length N; None for an adapter that does not ask.
    """
    if lengths is None or all(length == source.shape[1] for length in lengths):
        return adapter(source)  # type: ignore[no-any-return]
    return adapter(source, lengths=torch.tensor(lengths, device=source.device))  # type: ignore[no-any-return]
