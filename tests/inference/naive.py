"""Decoding written the slow way: one row, no cache, no padding, everything computed again at each step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from janus_plugins.core.contracts import Packed
from janus_plugins.inference.decode import ItemPrompt
from janus_plugins.inference.sampling import SeededDraws
from janus_plugins.model.unified import UnifiedModel


def last_hidden(model: UnifiedModel, embeds: Tensor) -> Tensor:
    """Return the last hidden state [1, M] of one row of embeddings [L, M]."""
    length = len(embeds)
    plan = Packed((torch.arange(length)[None],), torch.tensor([0, length], dtype=torch.int32), length)
    return model.language_model(embeds[None], torch.arange(length)[None], plan)[:, -1]


def naive_codes(
    model: UnifiedModel, prompt: ItemPrompt, seed: int, *, guidance: float, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return one image's codes [T], and the guided logits of every step [T, K]."""
    path, draws, embed = model.generation["image"], SeededDraws([seed]), model.language_model.embed
    codes: list[int] = []
    steps = []
    for _ in range(model.plan.model.generation["image"].facts.tokens):
        made = [path.adapter(torch.tensor([codes]))[0]] if codes else []
        conditional, unconditional = (
            path.head.logits(
                last_hidden(model, torch.cat((with_items(embed(torch.tensor(ids)), prompt.items), *made)))
            )
            for ids in (prompt.conditional, prompt.unconditional)
        )
        logits = (unconditional + guidance * (conditional - unconditional))[0]
        steps.append(logits)
        if temperature == 0:
            codes.append(int(logits.argmax()))
            continue
        heap = (logits / temperature).softmax(-1).double().cumsum(0)
        codes.append(int((heap <= draws.uniform().item() * heap[-1]).sum()))
    return torch.tensor(codes), torch.stack(steps)


def naive_text(
    model: UnifiedModel, ids: Sequence[int], stop: int, steps: int, items: Sequence[tuple[int, Tensor]] = ()
) -> list[int]:
    """Return the greedy continuation of one row."""
    embeds = with_items(model.language_model.embed(torch.tensor(ids)), items)
    said: list[int] = []
    for _ in range(steps):
        logits = model.language_model.text_head.logits(last_hidden(model, embeds))[0, : len(model.tokenizer)]
        said.append(int(logits.argmax()))
        if said[-1] == stop:
            return said[:-1]
        embeds = torch.cat((embeds, model.language_model.embed(torch.tensor(said[-1:]))))
    return said


def with_items(embeds: Tensor, items: Sequence[tuple[int, Tensor]]) -> Tensor:
    """Return a row of embeddings [L, M] with its items in their slots."""
    for start, values in items:
        embeds = torch.cat((embeds[:start], values, embeds[start + len(values) :]))
    return embeds
