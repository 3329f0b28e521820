"""Bring generated codes or latents back into the language model, one at a time.

A generation adapter learns from whole items [N, T] or [N, T, Q]; decoding has only what was made so far.
Where the adapter treats every code alike (checked, not assumed) the embedding of one code is all that is
needed, and with few codes and many items a table of all of them is computed once. Otherwise the
adapter reads everything made so far and its last embedding counts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from janus_plugins.core.answered import check_numbers
from janus_plugins.core.errors import RunFileError
from janus_plugins.core.facts import GenerationFacts
from janus_plugins.core.plan import Part
from janus_plugins.inference.blaming import blamed_in_step

_AS_QUICK = 32
"""Codes that a GPU embeds at once in the time of one, at least."""


class CodeEmbedder:
    """Embed what a head sampled, given all that it sampled before.

    Args:
        adapter: the generation adapter.
        facts: the generation encoder's.
        num_items: how many items will be made, which decides whether a table pays.
        part: whose fault it is where the adapter fails; None for nobody's.
    """

    def __init__(
        self, adapter: nn.Module, facts: GenerationFacts, num_items: int, part: Part | None = None
    ) -> None:
        self._module, self._part = cast(Any, adapter), part
        device = next((value.device for value in adapter.parameters()), torch.device("cpu"))
        self.alike = self._treats_alike(facts, device)
        self.table: Tensor | None = None
        size = facts.codebook_size if facts.codebooks == 1 else None  # all frames of codes are too many
        calls = num_items * facts.tokens * (1 if device.type == "cpu" else _AS_QUICK)
        if self.alike and size is not None and size <= calls:
            self.table = self._adapter(torch.arange(size, device=device)[None])[0]

    def _adapter(self, codes: Tensor) -> Tensor:
        with blamed_in_step(self._part, "embedding", codes):
            return cast(Tensor, self._module(codes))

    def __call__(self, made: Tensor) -> Tensor:
        """Return the embedding [B, M] of the last of the codes [B, t] or [B, t, Q] (or latents [B, t, C])."""
        return self.last(made, 1)[:, 0]

    def last(self, made: Tensor, count: int) -> Tensor:
        """Return the embeddings [B, count, M] of the last `count` codes of [B, t, ...]."""
        if self.table is not None:
            return self.table[made[:, -count:]]
        source = made[:, -count:] if self.alike else made
        return self._adapter(source)[:, -count:]

    def each(self, codes: Tensor) -> Tensor:
        """Return the embeddings [B, n, M] of codes [B, n], whatever stands before them."""
        if self.table is not None:
            return self.table[codes]
        return self._adapter(codes.reshape(-1, 1)).view(*codes.shape, -1)

    def check_alike(self, option: str) -> None:
        """Refuse an adapter that embeds a code by those before it, which `option` cannot serve."""
        if not self.alike:
            raise RunFileError(
                f"{type(self._module).__name__} embeds a code by those before it, which {option} does not "
                f"have; leave {option} out"
            )

    def _treats_alike(self, facts: GenerationFacts, device: torch.device) -> bool:
        """Compare one item embedded whole with its codes embedded one by one."""
        probe = _probe(facts, device)
        whole, single = _both_ways(self._adapter, probe)
        if self._part is not None:
            check_numbers(self._part, "embeddings", whole, probe)
        if whole.dtype != torch.float32:
            if _differ(whole, single, 3e-2):
                return False
            # Rounding hides what a place adds to a code, so that fp32 decides.
            weights = itertools.chain(self._module.named_parameters(), self._module.named_buffers())
            exact = {name: each.detach().float() for name, each in weights if each.is_floating_point()}
            whole, single = _both_ways(lambda codes: functional_call(self._module, exact, (codes,)), probe)
        return not _differ(whole, single, 1e-4)


def _both_ways(embed: Callable[[Tensor], Tensor], item: Tensor) -> tuple[Tensor, Tensor]:
    """Return the embeddings [T, M] of an item's codes, embedded together and one by one."""
    return embed(item[None])[0], embed(item[:, None])[:, 0]


def _differ(one: Tensor, other: Tensor, slack: float) -> bool:
    return not bool((one - other).abs().max() <= slack * one.abs().max())


def _probe(facts: GenerationFacts, device: torch.device) -> Tensor:
    """Return one item's worth of codes [T] or [T, Q], or latents [T, C], that differ from one another."""
    if facts.codebook_size is not None:
        numbers = torch.arange(facts.tokens * facts.codebooks, device=device)
        return (numbers * 7919 % facts.codebook_size).view(facts.shape)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(facts.shape, generator=generator).to(device)
