"""Where a sample's tokens lie, and which of them are learnt. Planned once, on the CPU, in numpy.

Losses, as in the paper: understanding and text learn text; generation learns only the codes, where
the hidden state at the begin token predicts code 0 and the one at code T-2 predicts code T-1.
Interleaved answers learn both. A stage may also learn the tokens around items: the text head then
answers for the begin token at the slot before it, and for the end token at code T-1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from janus_plugins.core.errors import BadSample
from janus_plugins.core.samples import Item, Part, Sample, Task, Turn, placed
from janus_plugins.sequence.line import (
    NO_TARGET,
    Ids,
    ItemSpan,
    Line,
    Spelling,
    item_slots,
    learnt_items,
)
from janus_plugins.sequence.turns import Opening, Rules, Style, TurnWriter

if TYPE_CHECKING:
    from janus_plugins.core.schema import StageBlock

_SENTENCE = re.compile(r".*?(?:[.!?](?=\s|$)|[。！？]|\n|$)", re.DOTALL)


@dataclass(frozen=True)
class SequencePlan:
    """Hold one sample as a line of tokens.

    Attributes:
        ids: token ids [L]; slots of items hold the pad id.
        text_targets: the token that each slot's hidden state must predict [L], -100 for none.
        spans: where items lie.
        task: which column of the mix it counts for.
        key: the sample's name.
    """

    ids: Ids
    text_targets: Ids
    spans: tuple[ItemSpan, ...]
    task: Task
    key: str

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def reach(self) -> Ids | None:
        """Return the last slot that each slot sees [L]; None where that is itself in all of them."""
        blocks = [span for span in learnt_items(self.spans) if span.blocks.size > 1]
        if not blocks:
            return None
        reach = np.arange(len(self))
        for span in blocks:
            begin = span.start - 1
            reach[begin : span.start + span.length] = begin + span.blocks.reach(span.length)
        return reach


def plan_sample(
    sample: Sample,
    token_counts: Sequence[int],
    spelling: Spelling,
    stage: StageBlock,
    rng: np.random.Generator,
) -> SequencePlan:
    """Lay out one training sample under a stage's rules.

    Args:
        sample: what a source yielded.
        token_counts: slots of each of its items, in reading order.
        spelling: tokenizer, template and item tokens.
        stage: how text is joined, what is learnt, how often prompts are dropped or cut.
        rng: the sample's own random numbers.

    Raises:
        BadSample: it does not fit `max_length` (text alone is truncated), or nothing in it is learnt.
    """
    drop, cut = rng.random(2) < (stage.drop_prompt, stage.first_sentence)
    turns = sample.turns
    if sample.task == "generation" and cut:
        turns = tuple(_first_sentence(turn) for turn in turns)
    rules = Rules(
        style=stage.template,
        learn_prompts=stage.loss_on == "text" and sample.task != "generation",
        learn_answers=sample.task != "generation",
        close_generated=stage.close_generated,
        learn_begin=stage.learn_begin,
        free=sample.task == "interleaved",
        system="" if sample.task == "generation" else spelling.template.system,
    )
    ids, targets, spans = _write(turns, token_counts, spelling, rules).finish()
    plan = SequencePlan(ids, targets, spans, sample.task, sample.key)
    if sample.task in ("generation", "interleaved") and drop:
        plan = _drop_text(plan, spelling.pad, single=stage.drop_to == "pad")
    return _fitted(plan, stage.max_length)


def plan_question(
    question: str,
    items: Sequence[tuple[str, int]],
    spelling: Spelling,
    style: Style = "chat",
    system: str | None = None,
) -> SequencePlan:
    """Lay out a question about items, up to where the answer begins.

    Args:
        question: the user's text. It stands after the items, as in the official prompts, but for those
            that it marks with `<image>` or the modality's placeholder (`core.samples.placed`).
        items: (modality, slots) of each item.
        spelling: tokenizer, template and item tokens.
        style: "chat", or "plain" for a model trained without role tags.
        system: system prompt (default: the template's).

    Raises:
        BadSample: other marks than items.
    """
    turn, order = _asked(question, items, spelling)
    plan = plan_turns((turn,), [items[index][1] for index in order], spelling, style, system)
    return replace(plan, spans=_as_given(plan.spans, order))


def plan_turns(
    turns: Sequence[Turn],
    token_counts: Sequence[int],
    spelling: Spelling,
    style: Style = "chat",
    system: str | None = None,
) -> SequencePlan:
    """Lay out a conversation, up to where the assistant's next text begins. Nothing is learnt."""
    rules = Rules(style=style, system=spelling.template.system if system is None else system)
    line = _write(turns, token_counts, spelling, rules, then="text")
    ids, targets, spans = line.finish()
    return SequencePlan(ids, targets, spans, "understanding" if spans else "text", "prompt")


def plan_generation(
    prompt: str,
    modality: str,
    spelling: Spelling,
    style: Style = "chat",
    items: Sequence[tuple[str, int]] = (),
) -> tuple[Ids, Ids, tuple[ItemSpan, ...]]:
    """Lay out a prompt for an item, up to its begin token.

    Args:
        prompt: the user's text; where the items stand is as for a question.
        modality: of the item to be made.
        spelling: tokenizer, template and item tokens.
        style: "chat", or "plain" for a model trained without role tags.
        items: (modality, slots) of each item that the prompt shows.

    Returns:
        The conditional ids [L], the unconditional ones [L], and where the shown items lie. The
        unconditional row is what a dropped prompt is in training: BOS, pads for all text, role tags
        included, the begin token, as in the official `generation_inference.py`; items stay.

    Raises:
        BadSample: other marks than items.
    """
    turn, order = _asked(prompt, items, spelling)
    counts = [items[index][1] for index in order]
    line = _write((turn,), counts, spelling, Rules(style=style), then="item")
    line.token(spelling.tokenizer.id_of(spelling.tokens_of(modality).begin))
    conditional, _, spans = line.finish()
    dropped = _text_slots(spans, len(conditional), stop=len(conditional) - 1)
    return conditional, np.where(dropped, spelling.pad, conditional), _as_given(spans, order)


def plan_interleaved(
    prompt: str,
    items: Sequence[tuple[str, int]],
    spelling: Spelling,
    style: Style = "chat",
    system: str | None = None,
) -> tuple[SequencePlan, Ids]:
    """Lay out a prompt for an answer of text and items, up to where the answer begins.

    Args:
        prompt: the user's text; where the items stand is as for a question.
        items: (modality, slots) of each item that the prompt shows.
        spelling: tokenizer, template and item tokens.
        style: "chat", or "plain" for a model trained without role tags.
        system: system prompt (default: the template's).

    Returns:
        The plan, and the ids [L] of its unconditional row: every text token but BOS a pad.
    """
    plan = plan_question(prompt, items, spelling, style, system)
    dropped = _text_slots(plan.spans, len(plan), stop=len(plan))
    return plan, np.where(dropped, spelling.pad, plan.ids)


def _asked(text: str, items: Sequence[tuple[str, int]], spelling: Spelling) -> tuple[Turn, list[int]]:
    """Return the user's turn that shows items and says `text`, and which item is read when."""
    shown = [Item(modality, index) for index, (modality, _) in enumerate(items)]
    parts = placed(text, shown, {name: spelling.tokens_of(name).placeholder for name, _ in items})
    return Turn("user", parts), [cast(int, part.value) for part in parts if isinstance(part, Item)]


def _as_given(spans: tuple[ItemSpan, ...], order: Sequence[int]) -> tuple[ItemSpan, ...]:
    """Return spans that name items by their place in what was given, not by when they are read."""
    return tuple(replace(span, item=order[span.item]) for span in spans)


def _write(
    turns: Sequence[Turn],
    token_counts: Sequence[int],
    spelling: Spelling,
    rules: Rules,
    then: Opening | None = None,
) -> Line:
    writer = TurnWriter(spelling, rules, token_counts)
    writer.write(turns, then)
    return writer.line


def _first_sentence(turn: Turn) -> Turn:
    """Cut a user's text to its first sentence; items stay."""
    if turn.role != "user":
        return turn
    texts = [part for part in turn.parts if isinstance(part, str)]
    found = _SENTENCE.match(texts[0].strip()) if texts else None
    kept: list[Part] = []
    for part in turn.parts:
        if isinstance(part, Item):
            kept.append(part)
        elif found is not None:
            kept.append(found.group().strip())
            found = None
    return Turn("user", tuple(kept))


def _text_slots(spans: tuple[ItemSpan, ...], length: int, stop: int) -> NDArray[np.bool_]:
    """Mark what an unconditional row does not see [length]: the text before `stop` that is not BOS."""
    dropped = ~item_slots(spans, length)
    dropped[0] = False
    dropped[stop:] = False
    return dropped


def _drop_text(plan: SequencePlan, pad: int, single: bool) -> SequencePlan:
    """Make a sample what an unconditional row is in use: pads for text, one for each id or a single one.

    Of a generation the text before its first learnt item goes; of an interleaved sample all text does,
    and only codes are learnt.
    """
    first = next(learnt_items(plan.spans), None)
    if first is None:
        return plan
    stop = len(plan) if plan.task == "interleaved" else first.start - 1
    dropped = _text_slots(plan.spans, len(plan), stop)
    ids, targets = np.where(dropped, pad, plan.ids), plan.text_targets.copy()
    targets[:stop] = NO_TARGET
    if not single or not dropped.any():
        return replace(plan, ids=ids, text_targets=targets)
    kept = ~dropped
    kept[np.argmax(dropped)] = True
    removed = np.cumsum(~kept)
    spans = tuple(replace(span, start=span.start - int(removed[span.start])) for span in plan.spans)
    return replace(plan, ids=ids[kept], text_targets=targets[kept], spans=spans)


def _fitted(plan: SequencePlan, max_length: int) -> SequencePlan:
    if len(plan) > max_length:
        if plan.spans or plan.task != "text":
            raise BadSample(f"{plan.key} takes {len(plan)} slots, more than max_length {max_length}")
        plan = replace(plan, ids=plan.ids[:max_length], text_targets=plan.text_targets[:max_length])
    if (plan.text_targets == NO_TARGET).all() and next(learnt_items(plan.spans), None) is None:
        raise BadSample(f"nothing in {plan.key} is learnt: {len(plan)} slots without a target")
    return plan
