"""Language models that each break one rule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from janus_plugins.core.contracts import Cached, Packed
from janus_plugins.core.facts import LanguageModelFacts
from janus_plugins.sequence.packing import packed_plan
from janus_plugins.testing.partner_models import PartnerLanguageModel


class Leaking(PartnerLanguageModel):
    """Sees whole rows, as if nothing were packed."""

    def forward(self, embeds: Tensor, positions: Tensor, attention: Any, cache: Any = None) -> Tensor:
        if isinstance(attention, Packed):
            rows, slots = embeds.shape[:2]
            attention = packed_plan([[slots]] * rows, slots)
        return super().forward(embeds, positions, attention, cache)


class Forgetting(PartnerLanguageModel):
    """Decodes without what is in the cache."""

    def forward(self, embeds: Tensor, positions: Tensor, attention: Any, cache: Any = None) -> Tensor:
        if isinstance(attention, Cached) and attention.start:
            attention, cache = Cached(0), self.new_cache(len(embeds), embeds.shape[1])
        return super().forward(embeds, positions, attention, cache)


class Staring(PartnerLanguageModel):
    """Attends to left padding."""

    def forward(self, embeds: Tensor, positions: Tensor, attention: Any, cache: Any = None) -> Tensor:
        if isinstance(attention, Cached):
            attention = replace(attention, visible=None)
        return super().forward(embeds, positions, attention, cache)


class Causal(PartnerLanguageModel):
    """Says that it is bidirectional, and is not."""

    def forward(self, embeds: Tensor, positions: Tensor, attention: Any, cache: Any = None) -> Tensor:
        causal = {"reach": None} if isinstance(attention, Packed) else {"block": 1}
        return super().forward(embeds, positions, replace(attention, **causal), cache)


class Gazing(PartnerLanguageModel):
    """Shows all slots of a step to one another."""

    def forward(self, embeds: Tensor, positions: Tensor, attention: Any, cache: Any = None) -> Tensor:
        if isinstance(attention, Cached) and attention.block > 1:
            attention = replace(attention, block=embeds.shape[1])
        return super().forward(embeds, positions, attention, cache)


class Scaling(PartnerLanguageModel):
    """Computes something else when it recomputes."""

    factor = 1.0

    def set_checkpointing(self, on: bool) -> None:
        self.factor = 0.5 if on else 1.0

    def forward(self, embeds: Tensor, positions: Tensor, attention: Any, cache: Any = None) -> Tensor:
        return super().forward(embeds, positions, attention, cache) * self.factor


class Refusing(PartnerLanguageModel):
    """Keeps a text head of its own."""

    def attach_text_head(self, head: nn.Module) -> None:
        self.text_head = nn.Linear(32, 64)


class Short(PartnerLanguageModel):
    """Tells fewer positions apart than its facts say."""

    def __init__(self, facts: LanguageModelFacts) -> None:
        super().__init__(facts)
        self.places = nn.Embedding(facts.max_positions - 1, facts.width)


class Adding(PartnerLanguageModel):
    """Adds positions to the embeddings that it was given."""

    def forward(self, embeds: Tensor, positions: Tensor, attention: Any, cache: Any = None) -> Tensor:
        with torch.no_grad():
            embeds += self.places(positions).to(embeds.dtype)
        return super().forward(embeds, positions, attention, cache)


def __getattr__(name: str) -> Any:
    """Let a spec name a class as its factory: `build_Short` builds `Short(facts)`."""
    made = globals().get(name.removeprefix("build_"))
    if made is None:
        raise AttributeError(name)
    return lambda config, facts: made(facts)
