"""One class out of many: the loss of a head over classes, and the choice of the next one.

Pure functions that every head over a vocabulary or a codebook shares. torch is imported inside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from janus_plugins.core.contracts import Draws


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk: int
) -> Tensor:
    """Return the cross-entropy of each position under a linear layer, at most `chunk` logits rows at a time.

    Beyond one chunk the logits are computed again in the backward pass, so that [P, V] never exists
    whole. Logits are taken in the layer's dtype, the loss in float32.

    Args:
        hidden: [P, M].
        weight: [V, M].
        bias: [V] or None.
        targets: classes [P] (int64).
        chunk: rows of logits that may exist at the same time.

    Returns:
        The loss of each position [P] (float32). An empty [0] keeps its place in the graph.
    """
    import torch
    from torch.nn import functional
    from torch.utils.checkpoint import checkpoint

    def one(rows: Tensor, wanted: Tensor) -> Tensor:
        logits = functional.linear(rows, weight, bias)
        return functional.cross_entropy(logits.float(), wanted, reduction="none")

    if len(hidden) <= chunk:
        return one(hidden, targets)
    pairs = zip(torch.split(hidden, chunk), torch.split(targets, chunk), strict=True)
    return torch.cat(
        [checkpoint(one, *pair, use_reentrant=False, preserve_rng_state=False) for pair in pairs]
    )


def guide(conditional: Tensor, unconditional: Tensor | None, guidance: float) -> Tensor:
    """Return float32 logits `u + s (c - u)` [B, V]. Source: Janus, section 3.4."""
    logits = conditional.float()
    if unconditional is None:
        return logits
    base = unconditional.float()
    return base + guidance * (logits - base)


def choose(
    logits: Tensor,
    *,
    temperature: float,
    draws: Draws,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """Return one class a row [B] (int64): the likeliest at temperature 0, else drawn.

    A row's draw is the inverse of its cumulative distribution at its own number from `draws`, so
    that it depends neither on its batch mates nor on the device's generator.

    Args:
        logits: [B, V] (float32).
        temperature: divides the logits; 0 means greedy, and draws nothing.
        draws: random numbers, one stream a row.
        top_k: keep the k likeliest classes.
        top_p: keep the likeliest classes that together make up this share.
    """
    if temperature == 0:
        return logits.argmax(-1)
    return pick_one(_keep((logits / temperature).softmax(-1), top_k, top_p), draws.uniform())


def distribution(
    logits: Tensor, *, temperature: float, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Return the shares [B, V] that `choose` draws from; at temperature 0 all is on the likeliest class."""
    from torch.nn.functional import one_hot

    if temperature == 0:
        return one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    shares = _keep((logits / temperature).softmax(-1), top_k, top_p)
    return shares / shares.sum(-1, keepdim=True)


def pick_one(shares: Tensor, numbers: Tensor) -> Tensor:
    """Return a class a row [B] (int64): where each number in [0, 1) falls in the heap of shares [B, V]."""
    import torch

    # float64: over 100,000 classes a float32 running sum loses the rare ones.
    heaped = shares.double().cumsum(-1)
    wanted = numbers.to(heaped.device).double()[:, None] * heaped[:, -1:]
    # right=True never lands on a class of share 0; the clamp guards against rounding at the top end.
    found = torch.searchsorted(heaped, wanted, right=True)[:, 0]
    return found.clamp(max=shares.shape[-1] - 1)


def _keep(shares: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Return shares [B, V] with those outside the k likeliest, or the likeliest p, set to 0."""
    if top_k is None and top_p is None:
        return shares
    ranked, order = shares.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ranked[:, top_k:] = 0
    if top_p is not None:
        before = ranked.double().cumsum(-1) - ranked
        beyond = before >= top_p * ranked.sum(-1, keepdim=True)
        beyond[:, :1] = False  # the likeliest stays, also where the share rounds to 0
        ranked = ranked.masked_fill(beyond, 0)
    return shares.new_zeros(shares.shape).scatter(-1, order, ranked)
