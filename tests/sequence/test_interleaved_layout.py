"""Interleaved answers and prompts with items: what is learnt where, and the same lines in training and in use."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from janus_plugins.core.samples import Item, Sample, Turn
from janus_plugins.sequence.layout import SequencePlan, plan_generation, plan_interleaved, plan_sample
from janus_plugins.sequence.line import NO_TARGET

from .spell import read, spelling, stage

OLD = spelling()
SYSTEM = OLD.template.system
OPEN = {"close_generated": True, "learn_begin": True}
MADE = Item("image", 1, learn=True)
SHOWN = Item("image", 0)


def counting(*answer: str | Item, shown: tuple[Item, ...] = ()) -> Sample:
    return Sample("interleaved", (Turn("user", (*shown, "Go")), Turn("assistant", answer)), "k")


def planned(sample: Sample, seed: int = 0, **options: object) -> SequencePlan:
    counts = [4 for turn in sample.turns for part in turn.parts if isinstance(part, Item)]
    return plan_sample(sample, counts, OLD, stage(**options), np.random.default_rng(seed))


def learnt(plan: SequencePlan) -> str:
    return read(plan.text_targets[plan.text_targets != NO_TARGET], OLD)


def test_an_answer_of_text_and_items_learns_to_switch_and_to_end() -> None:
    plan = planned(counting("one", MADE, "two", MADE), **OPEN)
    head = f"<bos>{SYSTEM}\n\nUser: Go\n\nAssistant:"
    assert read(plan.ids, OLD) == f"{head} one<b>____<e>\ntwo<b>____<e><eos>"
    assert learnt(plan) == " one<b><e>\ntwo<b><e><eos>"
    for span in plan.spans:
        before, last = span.start - 2, span.start + span.length - 1
        assert (
            plan.text_targets[before] == plan.ids[span.start - 1]
        )  # the slot before it predicts the begin token
        assert plan.text_targets[span.start - 1] == NO_TARGET  # the begin token predicts code 0, no text
        assert (plan.text_targets[span.start : last] == NO_TARGET).all()
        assert plan.text_targets[last] == plan.ids[last + 1]  # the last code predicts the end token
        assert plan.text_targets[last + 1] == plan.ids[last + 2] != NO_TARGET  # and behind it text goes on


def test_begin_tokens_are_learnt_on_request_alone_and_never_of_what_is_shown() -> None:
    sample = counting("one", MADE, "two", shown=(SHOWN,))
    assert learnt(planned(sample)) == " one\ntwo<eos>"
    assert learnt(planned(sample, close_generated=True)) == " one<e>\ntwo<eos>"
    assert learnt(planned(sample, **OPEN)) == " one<b><e>\ntwo<eos>"


@pytest.mark.parametrize("style", ["chat", "plain"])
def test_a_generation_may_learn_its_begin_token_but_not_from_a_dropped_prompt(style: str) -> None:
    sample = Sample("generation", (Turn("user", (SHOWN, "Go")), Turn("assistant", (MADE,))), "k")
    assert learnt(planned(sample, template=style, **OPEN)) == "<b><e><eos>"
    for drop_to in ("pads", "pad"):
        dropped = planned(sample, template=style, drop_prompt=1.0, drop_to=drop_to, **OPEN)
        assert learnt(dropped) == "<e><eos>"


@pytest.mark.parametrize("style", ["chat", "plain"])
@pytest.mark.parametrize("shown", [(), (SHOWN,), (SHOWN, SHOWN)])
@pytest.mark.parametrize("answer", [("one", MADE), (MADE, "one")])
def test_training_and_use_share_the_prompt(
    style: str, shown: tuple[Item, ...], answer: tuple[str, Item]
) -> None:
    items = [("image", 4)] * len(shown)
    trained = planned(counting(*answer, shown=shown), template=style, **OPEN)
    asked, unconditional = plan_interleaved("Go", items, OLD, style)  # type: ignore[arg-type]
    assert list(trained.ids[: len(asked)]) == list(asked.ids)
    assert trained.text_targets[len(asked) - 1] == trained.ids[len(asked)]
    assert asked.spans == trained.spans[: len(shown)]
    dropped = planned(counting(*answer, shown=shown), template=style, drop_prompt=1.0, **OPEN)
    assert list(dropped.ids[: len(asked)]) == list(unconditional)

    generation = Sample("generation", (Turn("user", (*shown, "Go")), Turn("assistant", (MADE,))), "k")
    drawn = planned(generation, template=style)
    ids, unconditional, spans = plan_generation("Go", "image", OLD, style, items)  # type: ignore[arg-type]
    assert list(drawn.ids[: len(ids)]) == list(ids)
    assert spans == drawn.spans[: len(shown)]
    dropped = planned(generation, template=style, drop_prompt=1.0)
    assert list(dropped.ids[: len(ids)]) == list(unconditional)


def test_an_unconditional_row_keeps_what_is_shown() -> None:
    ids, unconditional, _ = plan_generation("Go", "image", OLD, "plain", [("image", 4)])
    assert read(ids, OLD) == "<bos><b>____<e>Go<b>"
    assert read(unconditional, OLD) == "<bos><b>____<e>__<b>"


def test_a_dropped_interleaved_sample_keeps_items_and_learns_codes_alone() -> None:
    sample = counting("one", MADE, "two", MADE, shown=(SHOWN,))
    whole = planned(sample, template="plain", **OPEN)
    plan = planned(sample, template="plain", drop_prompt=1.0, **OPEN)
    assert read(whole.ids, OLD) == "<bos><b>____<e>Go\none<b>____<e>two<b>____<e><eos>"
    assert read(plan.ids, OLD) == "<bos><b>____<e>______<b>____<e>___<b>____<e>_"
    assert plan.spans == whole.spans
    assert (plan.text_targets == NO_TARGET).all()
    single = planned(sample, template="plain", drop_prompt=1.0, drop_to="pad", **OPEN)
    assert read(single.ids, OLD) == "<bos><b>____<e>_<b>____<e><b>____<e>"
    assert [span.start - 1 for span in single.spans] == [
        place for place, one in enumerate(single.ids) if read([one], OLD) == "<b>"
    ]


def test_text_alone_and_shown_items_are_not_dropped() -> None:
    sample = Sample("interleaved", (Turn("assistant", ("Look ", SHOWN, "there")),), "k")
    assert list(planned(sample, drop_prompt=1.0).ids) == list(planned(sample).ids)


def test_learning_to_begin_needs_learning_to_end() -> None:
    with pytest.raises(ValidationError, match="'learn_begin' needs 'close_generated: true'"):
        stage(learn_begin=True)
