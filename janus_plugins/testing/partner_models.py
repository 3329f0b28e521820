"""The partners' modules: small, plain, and written against the contracts alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from janus_plugins.core.choice import choose, guide
from janus_plugins.core.contracts import AttentionPlan, Draws, Packed
from janus_plugins.core.facts import (
    AdapterFacts,
    GenerationFacts,
    HeadFacts,
    LanguageModelFacts,
    UnderstandingFacts,
)
from janus_plugins.testing.partners import NUMBERS, PartnerCodecConfig


class PartnerLanguageModel(nn.Module):
    """Be a one-layer, one-head transformer with learnt positions; see `core.contracts.LanguageModel`."""

    text_head: nn.Module

    def __init__(self, facts: LanguageModelFacts) -> None:
        super().__init__()
        width = facts.width
        self.table = nn.Embedding(facts.vocab_size, width)
        self.places = nn.Embedding(facts.max_positions, width)
        self.first, self.second, self.last = (nn.LayerNorm(width) for _ in range(3))
        self.states = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def attach_text_head(self, head: nn.Module) -> None:
        """Take the head; the weights are not tied."""
        self.text_head = head

    def embed(self, ids: Tensor) -> Tensor:
        """Return token embeddings [..., M] of ids [...]."""
        embeddings: Tensor = self.table(ids)
        return embeddings

    def forward(
        self, embeds: Tensor, positions: Tensor, attention: AttentionPlan, cache: Any = None
    ) -> Tensor:
        """Return hidden states [B, S, M]; see `core.contracts.LanguageModel`."""
        hidden = embeds.to(self.out.weight.dtype) + self.places(positions)
        query, key, value = self.states(self.first(hidden)).chunk(3, dim=-1)
        if isinstance(attention, Packed):
            seen = _packed(query, key, value, attention)
        else:
            seen = _cached(query, key, value, attention, cache)
        hidden = hidden + self.out(seen)
        final: Tensor = self.last(hidden + self.feed(self.second(hidden)))
        return final

    def new_cache(self, batch: int, length: int) -> dict[str, Tensor]:
        """Make an empty cache; its tensors are made at the first write."""
        return {"size": torch.tensor([batch, length])}

    def set_checkpointing(self, on: bool) -> None:
        """Do nothing: one small layer has nothing to save."""


def _packed(query: Tensor, key: Tensor, value: Tensor, plan: Packed) -> Tensor:
    """Attend within each segment, causally or as far as each slot reaches; [B, S, M] each."""
    flat = [states.reshape(-1, states.shape[-1]) for states in (query, key, value)]
    seen = torch.zeros_like(flat[0])
    for group, reach in zip(plan.groups, plan.reach or [None] * len(plan.groups), strict=True):
        parts = [states[group] for states in flat]
        slots = torch.arange(group.shape[1], device=query.device)
        mask = slots <= (slots if reach is None else reach)[:, None]
        made = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=mask)
        seen = seen.index_copy(0, group.reshape(-1), made.reshape(-1, made.shape[-1]))
    return seen.view(query.shape)


def _cached(query: Tensor, key: Tensor, value: Tensor, plan: Any, cache: dict[str, Tensor] | None) -> Tensor:
    """Attend to everything before in the cache, causally among the new slots but for a block at the end."""
    start, stop = plan.start, plan.start + query.shape[1]
    if cache is not None:
        if "keys" not in cache:
            batch, length = cache["size"].tolist()
            cache["keys"] = key.new_zeros(batch, length, key.shape[-1])
            cache["values"] = torch.zeros_like(cache["keys"])
        cache["keys"][:, start:stop], cache["values"][:, start:stop] = key, value
        key, value = cache["keys"][:, :stop], cache["values"][:, :stop]
    slots = torch.arange(stop, device=query.device)
    asking = torch.arange(start, stop, device=query.device)[:, None]
    mask = ((slots <= asking) | (asking >= stop - plan.block))[None]
    if plan.visible is not None:
        mask = mask & plan.visible[:, None, :] | (slots == asking)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)


class PartnerEncoder(nn.Module):
    """Read {"values": [N, 64]} as T features of width C."""

    def __init__(self, facts: UnderstandingFacts) -> None:
        super().__init__()
        self.tokens, self.width = facts.max_tokens, facts.width
        self.layer = nn.Linear(NUMBERS, self.tokens * self.width)

    def forward(self, items: dict[str, Tensor]) -> Tensor:
        """Return features [N, T, C]."""
        values = items["values"].to(self.layer.weight.dtype)
        return torch.tanh(self.layer(values)).view(-1, self.tokens, self.width)


class PartnerCodec(nn.Module):
    """Turn {"values": [N, 64]} into codes or latents by fixed random directions, and back."""

    directions: Tensor
    vectors: Tensor

    def __init__(self, facts: GenerationFacts) -> None:
        super().__init__()
        self.facts = facts
        draw = torch.Generator().manual_seed(0)
        shape = (NUMBERS, facts.tokens * facts.codebooks * facts.width)
        directions = torch.randn(shape, generator=draw, device="cpu") / NUMBERS**0.5
        vectors = torch.randn(facts.codebook_size or 1, facts.width, generator=draw, device="cpu")
        self.register_buffer("directions", directions.to(torch.get_default_device()))
        self.register_buffer("vectors", vectors.to(torch.get_default_device()))

    def encode(self, items: dict[str, Tensor]) -> Tensor:
        """Return codes [N, T] or [N, T, Q], or latents [N, T, C]."""
        values = items["values"].to(self.directions.dtype)
        latents = (values @ self.directions).view(len(values), -1, self.facts.width)
        if self.facts.form == "latents":
            return latents
        codes = torch.cdist(latents.float(), self.vectors.float()[None]).argmin(-1)
        return codes.view(len(values), *self.facts.shape)

    def decode(self, codes: Tensor) -> Tensor:
        """Return [N, 64] of codes [N, T] or [N, T, Q], or latents [N, T, C]."""
        latents = codes if self.facts.form == "latents" else self.vectors[codes]
        return latents.flatten(1).to(self.directions.dtype) @ self.directions.T


class PartnerPictures(PartnerCodec):
    """Do the same with {"pixels": [N, 1, 8, 8]}."""

    def encode(self, items: dict[str, Tensor]) -> Tensor:
        """Return codes [N, T] or latents [N, T, C]."""
        return super().encode({"values": items["pixels"].flatten(1)})

    def decode(self, codes: Tensor) -> Tensor:
        """Return pictures [N, 1, 8, 8] of codes [N, T] or latents [N, T, C]."""
        side = int(NUMBERS**0.5)
        return super().decode(codes).view(-1, 1, side, side)


class PartnerAdapter(nn.Module):
    """Map features, codes or latents to the language model's width."""

    def __init__(self, facts: AdapterFacts) -> None:
        super().__init__()
        codes = facts.accepts == "codes"
        self.table = nn.Embedding(facts.codebook_size or 1, facts.in_width) if codes else None
        self.codebooks = facts.codebooks
        self.layer = nn.Linear(facts.in_width, facts.out_width)

    def forward(self, source: Tensor) -> Tensor:
        """Return embeddings [N, T, M]."""
        if self.table is not None:
            source = self.table(source)
            source = source if self.codebooks == 1 else source.sum(-2)
        embeddings: Tensor = self.layer(source.to(self.layer.weight.dtype))
        return embeddings


class PartnerHead(nn.Module):
    """Predict classes by cross-entropy, or a latent by squared error and a normal of width 0.1.

    The codes of several codebooks are predicted side by side, none knowing of the others.
    """

    def __init__(self, facts: HeadFacts) -> None:
        super().__init__()
        self.latents, self.codebooks = facts.predicts == "latents", facts.codebooks
        self.output = nn.Linear(facts.in_width, facts.codebooks * facts.size, bias=False)

    def output_layer(self) -> nn.Linear:
        """Return the layer whose weight a language model may tie."""
        return self.output

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [P, V] (of Q codebooks, one after the other), or the mean latent [P, C]."""
        logits: Tensor = self.output(hidden.to(self.output.weight.dtype))
        return logits

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each position [P] (float32)."""
        made = self.logits(hidden).float()
        if self.latents:
            return (made - targets.float()).square().mean(-1)
        if self.codebooks == 1:
            return functional.cross_entropy(made, targets, reduction="none")
        apart = made.unflatten(-1, (self.codebooks, -1)).transpose(1, 2)  # type: ignore[no-untyped-call]
        return functional.cross_entropy(apart, targets, reduction="none").sum(-1)

    def sample(
        self,
        hidden: Tensor,
        unconditional: Tensor | None,
        *,
        guidance: float,
        temperature: float,
        draws: Draws,
    ) -> Tensor:
        """Return the next ids [B] or [B, Q], or latents [B, C]; see `core.contracts.Head`."""
        other = None if unconditional is None else self.logits(unconditional)
        made = guide(self.logits(hidden), other, guidance)
        if not self.latents:
            apart = made.chunk(self.codebooks, dim=-1)
            picked = [choose(each, temperature=temperature, draws=draws) for each in apart]
            return picked[0] if self.codebooks == 1 else torch.stack(picked, 1)
        return made + 0.1 * temperature * draws.normal(made.shape[-1]).to(made.device)


def build_language_model(config: Any, facts: LanguageModelFacts) -> PartnerLanguageModel:
    """Build the partner language model."""
    return PartnerLanguageModel(facts)


def build_understanding_encoder(config: Any, facts: UnderstandingFacts) -> PartnerEncoder:
    """Build the partner understanding encoder."""
    return PartnerEncoder(facts)


def build_generation_encoder(config: PartnerCodecConfig, facts: GenerationFacts) -> PartnerCodec:
    """Build the partner generation encoder."""
    return PartnerCodec(facts)


def build_pictures(config: PartnerCodecConfig, facts: GenerationFacts) -> PartnerPictures:
    """Build the partner that makes pictures."""
    return PartnerPictures(facts)


def build_adapter(config: Any, facts: AdapterFacts) -> PartnerAdapter:
    """Build the partner adapter."""
    return PartnerAdapter(facts)


def build_head(config: Any, facts: HeadFacts) -> PartnerHead:
    """Build the partner head."""
    return PartnerHead(facts)
