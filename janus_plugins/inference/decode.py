"""The decoding loop, and items made by it: choose from hidden states, embed the choice, run one slot.

Items (codes or latents through a generation head, under classifier-free guidance) and text (`words.py`)
differ only in how they choose, how they embed, and when they stop. Templates, files and users' mistakes
are not known here: prompts arrive as ids, and every row with its own seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from janus_plugins.core.answered import check_codes, sampled
from janus_plugins.core.contracts import Draws
from janus_plugins.inference.ahead import Ahead, Decoding
from janus_plugins.inference.blaming import blamed_in_step
from janus_plugins.inference.blocks import check_blocks, make_in_blocks
from janus_plugins.inference.codes import CodeEmbedder
from janus_plugins.inference.graph import CountedDraws, GraphStep, Kept, check_static, kept, roomy
from janus_plugins.inference.linears import Linears, Way, fast_linears, when_compiled
from janus_plugins.inference.prefill import RecordedPrompts
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
        items: embeddings of items shown [T, M] and the slot where each begins, in both rows alike.
    """

    conditional: Sequence[int]
    unconditional: Sequence[int]
    seeds: Sequence[int]
    items: Sequence[tuple[int, Tensor]] = ()


Pick = Callable[[Tensor, Draws], Tensor]
"""Hidden states [B', M] and random numbers -> ids [B], codes [B, Q] or latents [B, C]."""


@dataclass(frozen=True)
class Loop:
    """Decode step by step: pick from hidden states, embed what was picked, run one slot.

    Attributes:
        pick: see `Pick`.
        embed: all that was picked so far [B, t, ...] -> input embeddings [B', M].
        steps: most picks.
        finished: all that was picked so far -> whether to stop early.
        compiled: the step as one graph; None for the eager one.
    """

    pick: Pick
    embed: Callable[[Tensor], Tensor]
    steps: int
    finished: Callable[[Tensor], bool] | None = None
    compiled: Callable[[Stream], GraphStep] | None = None

    def run(self, stream: Stream, draws: SeededDraws) -> Tensor:
        """Return what was picked: [B, steps] or [B, steps, C]."""
        counted = CountedDraws(draws)
        first = self.pick(stream.hidden, counted)
        if self.compiled is not None and self.steps > 1:
            return self.compiled(stream).run(stream, first, draws, counted, self.steps, self.finished)
        made = first.new_empty(len(first), self.steps, *first.shape[1:])
        made[:, 0] = first
        for step in range(1, self.steps):
            if self.finished is not None and self.finished(made[:, :step]):
                return made[:, :step]
            stream.step(self.embed(made[:, :step]))
            made[:, step] = self.pick(stream.hidden, draws)
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
    compile: bool = False,
    decoding: Decoding = "steps",
    window: int | None = None,
    on_batch: Callable[[Tensor], None] | None = None,
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
        compile: run each step as one compiled graph; see `inference.graph`.
        decoding: "steps", one code a run (or one block, where the path has `parallel`); "jacobi": see
            `inference.jacobi`; "zigzag": see `inference.zigzag`.
        window: of the latter two.
        on_batch: called with what those items made that ran together, in order, as soon as it is there.

    Raises:
        PluginError: the head sampled what its path's facts do not have.
    """
    plan = model.plan.model.generation[modality]
    facts = plan.facts
    number = sum(len(prompt.seeds) for prompt in prompts)
    path = cast(Any, model.generation[modality])
    embedder = CodeEmbedder(path.adapter, facts, number, plan.adapter)
    twice = guidance != 1
    length = max(len(prompt.conditional) for prompt in prompts) + facts.tokens
    at_once = max(1, (max_rows or rows_at_once(model, length)) // (1 + twice))

    looked = False

    def pick(hidden: Tensor, draws: Draws) -> Tensor:
        nonlocal looked
        conditional, unconditional = hidden.chunk(2) if twice else (hidden, None)
        options: Any = {"guidance": guidance, "temperature": temperature, "draws": draws}
        if looked:
            with blamed_in_step(plan.head, "sampling from", conditional):
                return cast(Tensor, path.head.sample(conditional, unconditional, **options))
        looked = True  # before anything is compiled
        return sampled(plan, path.head, conditional, unconditional, **options)

    def embed_last(made: Tensor, count: int) -> Tensor:
        embedded = embedder.last(made, count)
        return torch.cat((embedded, embedded)) if twice else embedded

    def embed(made: Tensor) -> Tensor:
        return embed_last(made, 1)[:, 0]

    def compiled(stream: Stream) -> GraphStep:
        def make() -> GraphStep:
            return GraphStep(model.language_model, lambda last: embed(last[:, None]), pick, way)

        key = (guidance, temperature, facts.tokens, way, *stream.shape, stream.padded)
        return cast(Kept, recorded).step(key, make)

    way: Way = linears
    if path.blocks.size > 1:
        check_blocks(decoding, compile)
    if compile:
        check_static(model.language_model)
        embedder.check_alike("compile")
        way = when_compiled(linears, model.device)
    parts = [model.language_model, path.adapter, path.head]
    recorded = kept(model, modality, parts) if compile else None
    loop = Loop(pick, embed, facts.tokens, compiled=compiled if compile else None)
    ahead = None
    if decoding != "steps":
        ahead = Ahead(model.language_model, path.head, embedder, facts, window, plan.head)
    if ahead is not None:
        ahead.check(decoding, compile)
        at_once = 1 if decoding == "jacobi" else at_once

    def make(batch: Sequence[ItemPrompt]) -> Tensor:
        draws = SeededDraws([seed for prompt in batch for seed in prompt.seeds], model.device)
        if path.blocks.size > 1:
            rows = _item_rows(model, batch, twice)
            return make_in_blocks(
                model.language_model, path, rows, facts.tokens, embed_last, pick, draws
            ).cpu()
        room = facts.tokens - 1 if ahead is None else ahead.room
        stream = _item_stream(model, batch, twice, room, recorded)
        if decoding == "jacobi":
            return cast(Ahead, ahead).jacobi(stream, guidance, temperature, draws).cpu()
        if decoding == "zigzag":
            return cast(Ahead, ahead).zigzag(stream, guidance, lambda hidden: pick(hidden, draws)).cpu()
        return loop.run(stream, draws).cpu()

    # On a GPU a language model sees to its own products.
    own = () if way == "kernels" else (model.language_model,)
    with fast_linears(way, *own, path.adapter, path.head):
        made = []
        for batch in _item_batches(prompts, at_once):
            made.append(check_codes(plan, plan.head, make(batch)))
            if on_batch is not None:
                on_batch(made[-1])
    return torch.cat(made)


def _item_stream(
    model: UnifiedModel, batch: Sequence[ItemPrompt], twice: bool, room: int, recorded: Kept | None
) -> Stream:
    """Run the prompts of a batch once each; continue with a row an item."""
    embeds, copies = _item_rows(model, batch, twice)
    positions = model.plan.model.facts.max_positions
    given = max(map(len, embeds))
    if recorded is not None:
        room = roomy(given + room) - given
    once = None if len(copies) == len(embeds) else copies
    prompts = RecordedPrompts.kept(recorded, model.language_model, model.device)
    return Stream(
        model.language_model, embeds, room, positions, once, prompts, model.plan.model.language_model
    )


def _item_rows(
    model: UnifiedModel, batch: Sequence[ItemPrompt], twice: bool
) -> tuple[list[Tensor], list[int]]:
    """Embed the prompts of a batch, conditional rows first [L, M]; and say which row each item continues."""
    rows = [(prompt.conditional, prompt.items) for prompt in batch]
    copies = [index for index, prompt in enumerate(batch) for _ in prompt.seeds]
    if twice:
        rows += [(prompt.unconditional, prompt.items) for prompt in batch]
        copies += [index + len(batch) for index in copies]
    language_model = cast(Any, model.language_model)
    return [row_embeds(language_model, ids, items, model.device) for ids, items in rows], copies


def _item_batches(prompts: Sequence[ItemPrompt], at_once: int) -> Iterator[list[ItemPrompt]]:
    """Cut prompts into batches of at most `at_once` items, in order; a prompt may be cut in two."""
    batch: list[ItemPrompt] = []
    free = at_once
    for prompt in prompts:
        seeds = list(prompt.seeds)
        while seeds:
            taken, seeds = seeds[:free], seeds[free:]
            batch.append(replace(prompt, seeds=taken))
            free -= len(taken)
            if free == 0:
                yield batch
                batch, free = [], at_once
    if batch:
        yield batch


def row_embeds(
    language_model: Any, ids: Sequence[int], items: Sequence[tuple[int, Tensor]], device: torch.device
) -> Tensor:
    """Return one row's input embeddings [L, M], with its items in their slots."""
    embeds = cast(Tensor, language_model.embed(torch.tensor(ids, device=device)))
    for start, values in items:
        embeds = embeds.index_copy(
            0, torch.arange(start, start + len(values), device=device), values.to(embeds.dtype)
        )
    return embeds


def rows_at_once(model: UnifiedModel, length: int) -> int:
    """Return how many rows the cache's budget allows, by the language model's own number format."""
    bytes_each = next(model.language_model.parameters()).element_size()
    return rows_within(model.plan.model.facts, length, bytes_each)
