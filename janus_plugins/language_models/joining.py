"""Weights that meet one input, moved beside one another in memory, so that one product reads them all.

They stay the parameters that they were: trained, saved and loaded each by itself. On a GPU a step of a few
rows is mostly kernels that wait for one another: fewer of them wait less.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def lie_together(layers: Sequence[nn.Linear]) -> None:
    """Move the weights (and biases) of layers of one input into one memory, in their order.

    Left as they are: those on a CPU, which has ways of its own (`inference.linears`), and those that lie in
    memory of somebody else, as an optimiser's that keeps all weights in a row.
    """
    for each in _tensors(layers):
        if _joined(each) is None and all(_is_movable(one) for one in each):
            _move(each)


def whole_of(layers: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None] | None:
    """Return the weight [sum of N, K] and bias of layers that lie together, or None."""
    found = [_joined(each) for each in _tensors(layers)]
    biased = {layer.bias is not None for layer in layers}
    if len(biased) > 1 or any(each is None for each in found):
        return None
    weight, bias = (*found, None)[:2]
    return None if weight is None else (weight, bias)


def _tensors(layers: Sequence[nn.Linear]) -> list[list[Tensor]]:
    biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
    return [[layer.weight for layer in layers], *([biases] if len(biases) == len(layers) else [])]


def _is_movable(one: Tensor) -> bool:
    alone = one.untyped_storage().nbytes() == one.nbytes
    return alone and one.device.type not in ("cpu", "meta") and one.is_contiguous() and not one.is_inference()


def _move(tensors: list[Tensor]) -> None:
    # What is made under inference mode could never be trained again.
    with torch.inference_mode(False), torch.no_grad():
        whole = torch.cat([each.data for each in tensors])
        parts = torch.split(whole, [len(each) for each in tensors])
        for each, part in zip(tensors, parts, strict=True):
            each.data = part


def _joined(tensors: list[Tensor]) -> Tensor | None:
    """Return tensors as one, where each begins in memory where the one before it ends."""
    first, *_ = tensors
    memory = first.untyped_storage()._cdata
    fits = all(
        other.untyped_storage()._cdata == memory
        and other.storage_offset() == one.storage_offset() + one.numel()
        and other.shape[1:] == one.shape[1:]
        and other.dtype == one.dtype
        and one.is_contiguous()
        and other.is_contiguous()
        for one, other in pairwise(tensors)
    )
    if not fits:
        return None
    shape = (sum(map(len, tensors)), *first.shape[1:])
    return first.detach().as_strided(shape, first.stride(), first.storage_offset())
