"""One decoding loop for every path: choose from hidden states, embed the choice, run one slot.

Items (codes or latents through a generation head, under classifier-free guidance) and text (tokens
through the text head) differ only in how they choose, how they embed, and when they stop. Templates,
files and users' mistakes are not known here: prompts arrive as ids, and every row with its own seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from janus_plugins.core.choice import choose
from janus_plugins.inference.codes import CodeEmbedder
from janus_plugins.inference.linears import Linears, fast_linears
from janus_plugins.inference.sampling import SeededDraws
from janus_plugins.inference.stream import Stream, rows_within

if TYPE_CHECKING:
    from janus_plugins.model.unified import UnifiedModel


@dataclass(frozen=True)
class ItemPrompt:
    """Ask for items of one prompt.

    Attributes:
        conditional: ids, ending in the item's begin token.
        unconditional: as many ids: BOS, pads, the begin token. Its pads are seen, as in the reference.
        seeds: one 64-bit seed for each item wanted.
    """

    conditional: Sequence[int]
    unconditional: Sequence[int]
    seeds: Sequence[int]


@dataclass(frozen=True)
class TextPrompt:
    """Ask for text.

    Attributes:
        ids: ids [L]; slots of items hold any id.
        seed: the row's 64-bit seed.
        items: embeddings of items [T, M] and the slot where each begins.
    """

    ids: Sequence[int]
    seed: int
    items: Sequence[tuple[int, Tensor]] = ()


def decode_loop(
    stream: Stream,
    pick: Callable[[Tensor], Tensor],
    embed: Callable[[Tensor], Tensor],
    steps: int,
    finished: Callable[[Tensor], bool] | None = None,
) -> Tensor:
    """Return what was picked, step by step: [B, steps], or [B, steps, Q or C].

    Args:
        stream: rows whose given slots have run.
        pick: hidden states [B', M] -> ids [B], codes [B, Q] or latents [B, C].
        embed: all that was picked so far [B, t, ...] -> input embeddings [B', M].
        steps: most steps to take.
        finished: all that was picked so far -> whether to stop early.
    """
    made = pick(stream.hidden)[:, None]
    for _ in range(steps - 1):
        if finished is not None and finished(made):
            break
        stream.step(embed(made))
        made = torch.cat((made, pick(stream.hidden)[:, None]), dim=1)
    return made


def generate_items(
    model: UnifiedModel,
    modality: str,
    prompts: Sequence[ItemPrompt],
    *,
    guidance: float = 5.0,
    temperature: float = 1.0,
    max_rows: int | None = None,
    linears: Linears = "packed",
) -> Tensor:
    """Return what every seed of every prompt makes, in order, on the CPU.

    Codes [N, T] or, of Q codebooks, [N, T, Q] (int64); latents [N, T, C].

    Classifier-free guidance as in the reference: `u + s (c - u)` of a head's answers (Janus, section
    3.4). At a guidance of 1 that is `c`, and no unconditional rows run.

    Args:
        model: the unified model.
        modality: one of its generation paths.
        prompts: ids and seeds.
        guidance: s.
        temperature: 0 means greedy.
        max_rows: most rows of the language model at once (default: by the memory of the cache); an
            item takes two of them under guidance, and one item is always made.
        linears: how linear layers compute; see `inference.linears`.
    """
    facts = model.plan.model.generation[modality].facts
    number = sum(len(prompt.seeds) for prompt in prompts)
    path = cast(Any, model.generation[modality])
    embedder = CodeEmbedder(path.adapter, facts, number)
    twice = guidance != 1
    length = max(len(prompt.conditional) for prompt in prompts) + facts.tokens
    at_once = max(1, (max_rows or _rows_within(model, length)) // (1 + twice))

    def make(batch: Sequence[ItemPrompt]) -> Tensor:
        draws = SeededDraws([seed for prompt in batch for seed in prompt.seeds], model.device)
        stream = _item_stream(model, batch, twice, facts.tokens - 1)

        def pick(hidden: Tensor) -> Tensor:
            conditional, unconditional = hidden.chunk(2) if twice else (hidden, None)
            chosen = path.head.sample(
                conditional, unconditional, guidance=guidance, temperature=temperature, draws=draws
            )
            return cast(Tensor, chosen)

        def embed(made: Tensor) -> Tensor:
            embedded = embedder(made)
            return torch.cat((embedded, embedded)) if twice else embedded

        return decode_loop(stream, pick, embed, facts.tokens).cpu()

    with fast_linears(linears, model.language_model, path.adapter, path.head):
        return torch.cat([make(batch) for batch in _item_batches(prompts, at_once)])


def generate_text(
    model: UnifiedModel,
    prompts: Sequence[TextPrompt],
    *,
    stop: int,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    top_p: float | None = None,
    max_rows: int | None = None,
    linears: Linears = "packed",
) -> list[list[int]]:
    """Return the new ids of each prompt, up to and without `stop`.

    A row also ends after `max_new_tokens`, and where the language model has no positions left.

    Args:
        model: the unified model.
        prompts: ids, items and seeds.
        stop: id that ends a row (the end of sequence).
        max_new_tokens: most new ids of a row.
        temperature: 0 means greedy.
        top_p: sample from the likeliest ids that hold this share of the probability.
        max_rows: most rows at once (default: by the memory of the cache).
        linears: how linear layers compute; see `inference.linears`.
    """
    positions = model.plan.model.facts.max_positions
    # The last token of an answer is chosen, never read: it needs no position.
    limits = [min(max_new_tokens, positions - len(prompt.ids) + 1) for prompt in prompts]
    length = max(len(prompt.ids) for prompt in prompts) + max(limits)
    at_once = max_rows or _rows_within(model, length)
    language_model = cast(Any, model.language_model)
    known = len(model.tokenizer)

    def answer(batch: Sequence[TextPrompt], limits: Sequence[int]) -> Tensor:
        draws = SeededDraws([prompt.seed for prompt in batch], model.device)
        embeds = [_text_embeds(language_model, prompt, model.device) for prompt in batch]
        ends = torch.tensor(limits, device=model.device)

        def pick(hidden: Tensor) -> Tensor:
            logits = language_model.text_head.logits(hidden)[:, :known]
            return choose(logits.float(), temperature=temperature, draws=draws, top_p=top_p)

        def embed(made: Tensor) -> Tensor:
            return cast(Tensor, language_model.embed(made[:, -1]))

        def finished(made: Tensor) -> bool:
            return bool(((made == stop).any(1) | (ends <= made.shape[1])).all())

        stream = Stream(language_model, embeds, max(limits) - 1, positions)
        return decode_loop(stream, pick, embed, max(limits), finished)

    answers: list[list[int]] = []
    for first in range(0, len(prompts), at_once):
        rows = slice(first, first + at_once)
        with fast_linears(linears, model.language_model):
            made = answer(prompts[rows], limits[rows]).tolist()
        answers += [_until(row[:limit], stop) for row, limit in zip(made, limits[rows], strict=True)]
    return answers


def _item_stream(model: UnifiedModel, batch: Sequence[ItemPrompt], twice: bool, room: int) -> Stream:
    """Run the prompts of a batch once each, conditional rows first; continue with a row an item."""
    rows = [prompt.conditional for prompt in batch]
    copies = [index for index, prompt in enumerate(batch) for _ in prompt.seeds]
    if twice:
        rows += [prompt.unconditional for prompt in batch]
        copies += [index + len(batch) for index in copies]
    language_model = cast(Any, model.language_model)
    embeds = [language_model.embed(torch.tensor(row, device=model.device)) for row in rows]
    positions = model.plan.model.facts.max_positions
    return Stream(model.language_model, embeds, room, positions, None if len(copies) == len(rows) else copies)


def _item_batches(prompts: Sequence[ItemPrompt], at_once: int) -> Iterator[list[ItemPrompt]]:
    """Cut prompts into batches of at most `at_once` items, in order; a prompt may be cut in two."""
    batch: list[ItemPrompt] = []
    free = at_once
    for prompt in prompts:
        seeds = list(prompt.seeds)
        while seeds:
            taken, seeds = seeds[:free], seeds[free:]
            batch.append(ItemPrompt(prompt.conditional, prompt.unconditional, taken))
            free -= len(taken)
            if free == 0:
                yield batch
                batch, free = [], at_once
    if batch:
        yield batch


def _text_embeds(language_model: Any, prompt: TextPrompt, device: torch.device) -> Tensor:
    """Return one row's input embeddings [L, M], with its items in their slots."""
    embeds = cast(Tensor, language_model.embed(torch.tensor(prompt.ids, device=device)))
    for start, values in prompt.items:
        embeds = embeds.index_copy(
            0, torch.arange(start, start + len(values), device=device), values.to(embeds.dtype)
        )
    return embeds


def _rows_within(model: UnifiedModel, length: int) -> int:
    """Return how many rows the cache's budget allows, by the language model's own number format."""
    bytes_each = next(model.language_model.parameters()).element_size()
    return rows_within(model.plan.model.facts, length, bytes_each)


def _until(ids: Sequence[int], stop: int) -> list[int]:
    """Return ids before the first `stop`."""
    return list(ids[: ids.index(stop)] if stop in ids else ids)
