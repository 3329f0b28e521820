"""Speculative Jacobi decoding: guess several codes, check them in one run, keep what holds.

A run over a window of guesses gives each place's distribution under the guesses before it. A guess is kept
with the chance min(1, p / q), q being the distribution that it was drawn from; the first that fails is drawn
again from what p has and q lacks, so that codes have exactly the distribution of one-by-one decoding (greedy
ones are equal to the last code, but for rounding). The guesses behind it are drawn from their newest
distributions. Source: Teng et al., arXiv 2410.01699.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from janus_plugins.core.choice import pick_one
from janus_plugins.core.contracts import Draws
from janus_plugins.inference.stream import Stream


@dataclass(frozen=True)
class Guesses:
    """Hold guesses for the codes that come next.

    Attributes:
        codes: [n] (int64).
        shares: what each was drawn from [n, K].
    """

    codes: Tensor
    shares: Tensor


def jacobi_codes(
    stream: Stream,
    shares_of: Callable[[Tensor], Tensor],
    embed: Callable[[Tensor], Tensor],
    steps: int,
    window: int,
    draws: Draws,
) -> Tensor:
    """Return one item's codes [steps].

    Args:
        stream: the item's rows, whose given slots have run.
        shares_of: hidden states [B, S, M] -> distributions [S, K].
        embed: codes [n] -> input embeddings [B, n, M].
        steps: codes of the item (T).
        window: most codes that one run decides.
        draws: the item's random numbers, a stream of one row.
    """
    shares = shares_of(stream.hidden[:, None])
    made = _drawn(shares, draws)
    guesses = _guessed(shares[:0], shares, min(window, steps - 1) - 1, draws)
    while len(made) < steps:
        known = torch.cat((made[-1:], guesses.codes))
        shares = shares_of(stream.look(embed(known)))
        kept, code = _checked(guesses, shares, draws)
        made = torch.cat((made, guesses.codes[:kept], code))
        stream.keep(kept + 1)
        wanted = min(window, steps - len(made)) - 1
        guesses = _guessed(shares[kept + 1 :], shares[-1:], wanted, draws)
    return made


def _checked(guesses: Guesses, shares: Tensor, draws: Draws) -> tuple[int, Tensor]:
    """Return how many guesses hold under new distributions [n + 1, K], and the code that follows them [1]."""
    number = len(guesses.codes)
    at = guesses.codes[:, None]
    old, new = guesses.shares.gather(1, at)[:, 0], shares[:number].gather(1, at)[:, 0]
    holds = _numbers(number, draws, shares) * old < new
    kept = int(holds.long().cumprod(0).sum())
    left = shares[kept : kept + 1]
    if kept < number:
        lacking = (left - guesses.shares[kept : kept + 1]).clamp(min=0)
        left = lacking if bool(lacking.sum() > 0) else left
    return kept, _drawn(left, draws)


def _guessed(shares: Tensor, further: Tensor, number: int, draws: Draws) -> Guesses:
    """Draw `number` guesses: from distributions [n, K] as far as they go, then from `further` [1, K]."""
    number = max(0, number)
    missing = max(0, number - len(shares))
    whole = torch.cat((shares[:number], further.expand(missing, -1)))
    return Guesses(_drawn(whole, draws), whole)


def _drawn(shares: Tensor, draws: Draws) -> Tensor:
    """Draw a code from each distribution [n, K]: [n]."""
    if not len(shares):
        return torch.empty(0, dtype=torch.int64, device=shares.device)
    return pick_one(shares, _numbers(len(shares), draws, shares))


def _numbers(number: int, draws: Draws, like: Tensor) -> Tensor:
    """Return the next numbers of the one stream [number]."""
    if not number:
        return like.new_empty(0)
    return torch.cat([draws.uniform() for _ in range(number)]).to(like.device)
