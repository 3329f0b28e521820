"""Text by the decoding loop: many prompts over a few rows, with what they share computed once.

Prompts that begin alike up to their last item (one picture, several questions) share that part's prefill.
A row that has ended gives its seat to the next prompt (`filling.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from janus_plugins.core.choice import choose
from janus_plugins.core.contracts import Draws
from janus_plugins.inference.blaming import blamed_in_step
from janus_plugins.inference.decode import Loop, row_embeds, rows_at_once
from janus_plugins.inference.filling import Order, Watch, fill
from janus_plugins.inference.graph import GraphStep, Kept, check_static, kept, roomy
from janus_plugins.inference.linears import Linears, Way, fast_linears, when_compiled
from janus_plugins.inference.prefill import RecordedPrompts
from janus_plugins.inference.sampling import SeededDraws
from janus_plugins.inference.stream import Stream

if TYPE_CHECKING:
    from janus_plugins.model.unified import UnifiedModel


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
    compile: bool = False,
    watch: Watch | None = None,
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
        compile: run each step as one compiled graph; see `inference.graph`.
        watch: called as answers grow, with a prompt's number and its new ids so far.
    """
    positions = model.plan.model.facts.max_positions
    # The last token of an answer is chosen, never read: it needs no position.
    limits = [min(max_new_tokens, positions - len(prompt.ids) + 1) for prompt in prompts]
    lengths = [len(prompt.ids) for prompt in prompts]
    at_once = max_rows or rows_at_once(model, 2 * (max(lengths) + max(limits)))
    language_model = cast(Any, model.language_model)
    known, part = len(model.tokenizer), model.plan.model.text_head

    def pick(hidden: Tensor, draws: Draws) -> Tensor:
        with blamed_in_step(part, "the logits of", hidden):
            logits = language_model.text_head.logits(hidden)[:, :known]
        return choose(logits.float(), temperature=temperature, draws=draws, top_p=top_p)

    def order(rows: Sequence[int]) -> Order:
        def begin(chosen: Sequence[int], room: int) -> Stream:
            return begin_text(model, [prompts[rows[each]] for each in chosen], room, recorded)

        return Order(
            begin=begin,
            lengths=[lengths[row] for row in rows],
            limits=[limits[row] for row in rows],
            seeds=[prompts[row].seed for row in rows],
            pick=pick,
            embed=language_model.embed,
            stop=stop,
            watch=None if watch is None else lambda index, said: watch(rows[index], said),
        )

    batches = [range(first, min(first + at_once, len(prompts))) for first in range(0, len(prompts), at_once)]
    way: Way = linears
    recorded = None
    if compile:
        check_static(language_model)
        way = when_compiled(linears, model.device)
        recorded = kept(model, "text", [language_model])
    # On a GPU a language model sees to its own products.
    with fast_linears(way, language_model.text_head if way == "kernels" else language_model):
        if recorded is not None:
            key = (temperature, top_p, max_new_tokens)
            made = [_compiled(model, key, order(rows), max_new_tokens, way, recorded) for rows in batches]
            return [said for batch in made for said in batch]
        if hasattr(language_model.new_cache(1, 1), "put"):
            return fill(order(range(len(prompts))), at_once, model.device)
        return [said for rows in batches for said in fill(order(rows), len(rows), model.device)]


def begin_text(
    model: UnifiedModel, prompts: Sequence[TextPrompt], room: int, recorded: Kept | None = None
) -> Stream:
    """Run prompts, what they share once, without items as was recorded of them; leave `room` slots.

    A prompt with items runs in two pieces in any company, so that company does not change its rounding.
    """
    positions = model.plan.model.facts.max_positions
    language_model = cast(Any, model.language_model)
    heads = [_items_end(prompt) for prompt in prompts]
    rows = [row_embeds(language_model, one.ids, one.items, model.device) for one in prompts]
    if not any(heads) or any(head == len(row) for head, row in zip(heads, rows, strict=True)):
        once = RecordedPrompts.kept(recorded, language_model, model.device)
        return Stream(language_model, rows, room, positions, None, once, model.plan.model.language_model)
    heads = [head or 1 for head in heads]
    keys = [
        (tuple(prompt.ids[:head]), tuple((start, id(values)) for start, values in prompt.items))
        for prompt, head in zip(prompts, heads, strict=True)
    ]
    distinct = list(dict.fromkeys(keys))
    first = [keys.index(key) for key in distinct]
    tails = [row[head:] for row, head in zip(rows, heads, strict=True)]
    stream = Stream(
        language_model,
        [rows[index][: heads[index]] for index in first],
        room + max(map(len, tails)),
        positions,
        [distinct.index(key) for key in keys],
        part=model.plan.model.language_model,
    )
    stream.extend(tails)
    return stream


def _compiled(
    model: UnifiedModel, key: tuple[Any, ...], order: Order, max_new_tokens: int, way: Way, recorded: Kept
) -> list[list[int]]:
    """Answer one batch by compiled steps."""
    longest, ends = max(order.lengths), torch.tensor(order.limits, device=model.device)

    def finished(made: Tensor) -> bool:
        if order.watch is not None:
            for index, (row, limit) in enumerate(zip(made.tolist(), order.limits, strict=True)):
                order.watch(index, _until(row[:limit], order.stop))
        return bool(((made == order.stop).any(1) | (ends <= made.shape[1])).all())

    def compiled(stream: Stream) -> GraphStep:
        def make() -> GraphStep:
            return GraphStep(model.language_model, order.embed, order.pick, way)

        return kept(model, "text", [model.language_model]).step(
            (*key, way, *stream.shape, stream.padded), make
        )

    # As many slots for every batch of about this length, so that they share what was compiled.
    room = roomy(2 * longest + max_new_tokens) - longest
    stream = order.begin(range(len(order.lengths)), room)
    loop = Loop(order.pick, lambda made: order.embed(made[:, -1]), max_new_tokens, finished, compiled)
    made = loop.run(stream, SeededDraws(order.seeds, model.device)).tolist()
    return [_until(row[:limit], order.stop) for row, limit in zip(made, order.limits, strict=True)]


def _items_end(prompt: TextPrompt) -> int:
    """Return the slot after a prompt's last item; 0 without items."""
    return max((start + len(values) for start, values in prompt.items), default=0)


def _until(ids: Sequence[int], stop: int) -> list[int]:
    """Return ids before the first `stop`."""
    return list(ids[: ids.index(stop)] if stop in ids else ids)
