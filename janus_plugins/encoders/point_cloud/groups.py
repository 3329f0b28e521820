"""Neighbourhoods of points: farthest-point sampling and nearest neighbours, whole batches at a time."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def farthest_points(places: Tensor, count: int) -> Tensor:
    """Return indices [N, count] of points that each lie farthest from those before.

    The first is the farthest from the middle, so that the order of the points has no say. The loop is
    over the chosen points, since each depends on those before; within it all clouds and points go at once.

    Args:
        places: [N, P, 3] (float32).
        count: how many to choose; at most P.
    """
    batch = torch.arange(len(places), device=places.device)
    chosen = (places - places.mean(1, keepdim=True)).square().sum(-1).argmax(1)
    nearest = torch.full(places.shape[:2], torch.inf, device=places.device)
    indices = [chosen]
    for _ in range(count - 1):
        distance = (places - places[batch, chosen][:, None]).square().sum(-1)
        nearest = torch.minimum(nearest, distance)
        chosen = nearest.argmax(1)
        indices.append(chosen)
    return torch.stack(indices, dim=1)


@torch.no_grad()
def neighbours(places: Tensor, centres: Tensor, count: int) -> Tensor:
    """Return indices [N, G, count] of the points nearest to each centre, nearest first.

    Args:
        places: [N, P, 3] (float32).
        centres: [N, G, 3] (float32).
        count: how many; at most P.
    """
    # Distances by a matrix product lose the small ones, and depend on the batch.
    distances = torch.cdist(centres, places, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.topk(count, dim=-1, largest=False, sorted=True).indices


def gathered(points: Tensor, indices: Tensor) -> Tensor:
    """Return points [N, ..., C] of [N, P, C] at indices [N, ...]."""
    flat = indices.flatten(1)[..., None].expand(-1, -1, points.shape[2])
    return points.gather(1, flat).reshape(*indices.shape, points.shape[2])
