"""Where a sample's tokens lie, and which of them are learnt. Planned once, on the CPU, in numpy.

Losses, as in the paper: understanding and text learn text; generation learns only the codes, where
the hidden state at the begin token predicts code 0 and the one at code T-2 predicts code T-1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from janus_plugins.core.errors import BadSample
from janus_plugins.core.samples import Item, Part, Sample, Task, Turn
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
        system="" if sample.task == "generation" else spelling.template.system,
    )
    ids, targets, spans = _write(turns, token_counts, spelling, rules).finish()
    plan = SequencePlan(ids, targets, spans, sample.task, sample.key)
    if sample.task == "generation" and drop:
        plan = _drop_prompt(plan, spelling.pad, single=stage.drop_to == "pad")
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
        question: the user's text; it stands after the items, as in the official prompts.
        items: (modality, slots) of each item.
        spelling: tokenizer, template and item tokens.
        style: "chat", or "plain" for a model trained without role tags.
        system: system prompt (default: the template's).
    """
    parts: tuple[Part, ...] = tuple(Item(modality, None) for modality, _ in items)
    turns = (Turn("user", (*parts, question) if question else parts),)
    return plan_turns(turns, [count for _, count in items], spelling, style, system)


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


def plan_generation(prompt: str, modality: str, spelling: Spelling, style: Style = "chat") -> tuple[Ids, Ids]:
    """Lay out a prompt for an item, up to its begin token.

    Returns:
        The conditional ids [L] and the unconditional ones [L]: BOS, pads for everything, role tags
        included, and the begin token, as in the official `generation_inference.py`.
    """
    line = _write((Turn("user", (prompt,)),), (), spelling, Rules(style=style), then="item")
    line.token(spelling.tokenizer.id_of(spelling.tokens_of(modality).begin))
    conditional, _, _ = line.finish()
    unconditional = conditional.copy()
    unconditional[1:-1] = spelling.pad
    return conditional, unconditional


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


def _drop_prompt(plan: SequencePlan, pad: int, single: bool) -> SequencePlan:
    """Replace the text before the first learnt item by pads: one for each id, or a single one."""
    first = next(learnt_items(plan.spans), None)
    if first is None:
        return plan
    dropped = ~item_slots(plan.spans, len(plan))
    dropped[0] = False
    dropped[first.start - 1 :] = False
    ids = np.where(dropped, pad, plan.ids)
    if not single or not dropped.any():
        return replace(plan, ids=ids)
    kept = ~dropped
    kept[np.argmax(dropped)] = True
    removed = np.cumsum(~kept)
    spans = tuple(replace(span, start=span.start - int(removed[span.start])) for span in plan.spans)
    return replace(plan, ids=ids[kept], text_targets=plan.text_targets[kept], spans=spans)


def _fitted(plan: SequencePlan, max_length: int) -> SequencePlan:
    if len(plan) > max_length:
        if plan.spans or plan.task != "text":
            raise BadSample(f"{plan.key} takes {len(plan)} slots, more than max_length {max_length}")
        plan = replace(plan, ids=plan.ids[:max_length], text_targets=plan.text_targets[:max_length])
    if (plan.text_targets == NO_TARGET).all() and next(learnt_items(plan.spans), None) is None:
        raise BadSample(f"nothing in {plan.key} is learnt: {len(plan)} slots without a target")
    return plan
