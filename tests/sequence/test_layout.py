"""Layout: the official formats to the letter, and losses only where the paper puts them."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from janus_plugins.core.errors import BadSample
from janus_plugins.core.samples import (
    Item,
    Sample,
    Turn,
    generation_sample,
    question_sample,
    text_sample,
    understanding_sample,
)
from janus_plugins.core.schema import TemplateName
from janus_plugins.sequence.layout import (
    SequencePlan,
    plan_generation,
    plan_question,
    plan_sample,
    plan_turns,
)
from janus_plugins.sequence.line import Spelling
from janus_plugins.sequence.templates import TEMPLATES, resolve_template, special_tokens

from .spell import model_block, read, spelling, stage

OLD = spelling()
SYSTEM = OLD.template.system
SHOWN = understanding_sample("image", None, "What? ", "A cat. ", "k")
DRAWN = generation_sample("A dog. It runs", "image", None, "k")
ASKED = question_sample("Two plus two", "four", "k")


def planned(sample: Sample, seed: int = 0, spelled: Spelling = OLD, **options: object) -> SequencePlan:
    counts = [4 for turn in sample.turns for part in turn.parts if isinstance(part, Item)]
    return plan_sample(sample, counts, spelled, stage(**options), np.random.default_rng(seed))


def learnt(plan: SequencePlan) -> str:
    return read(plan.text_targets[plan.text_targets >= 0], OLD)


def test_understanding_as_in_the_official_prompt() -> None:
    plan = planned(SHOWN)
    assert read(plan.ids, OLD) == f"<bos>{SYSTEM}\n\nUser: <b>____<e>\nWhat?\n\nAssistant: A cat.<eos>"
    assert learnt(plan) == " A cat.<eos>"
    (span,) = plan.spans
    assert (span.path, span.length, span.item) == ("understanding", 4, 0)
    assert read(plan.ids[span.start - 1 : span.start + 5], OLD) == "<b>____<e>"


def test_targets_are_the_next_ids() -> None:
    for sample in (SHOWN, ASKED, text_sample("hello", "k")):
        plan = planned(sample, loss_on="text")
        at = np.flatnonzero(plan.text_targets >= 0)
        assert (plan.text_targets[at] == plan.ids[at + 1]).all()
        assert plan.text_targets[-1] == -100


def test_generation_has_no_system_prompt_and_no_text_loss() -> None:
    plan = planned(DRAWN)
    assert read(plan.ids, OLD) == "<bos>User: A dog. It runs\n\nAssistant:<b>____"
    assert learnt(plan) == ""
    assert plan.spans[0].path == "generation"


def test_generation_closed_on_request() -> None:
    plan = planned(DRAWN, close_generated=True)
    assert read(plan.ids, OLD).endswith("Assistant:<b>____<e><eos>")
    assert learnt(plan) == "<e><eos>"


def test_janus_pro_tags_are_single_tokens_where_the_tokenizer_has_them() -> None:
    pro = spelling("deepseek")
    plan = planned(ASKED, spelled=pro)
    expected = f"<bos>{SYSTEM}\n\n<|User|>: Two plus two\n\n<|Assistant|>: four<eos>"
    assert read(plan.ids, pro) == expected
    pro.tokenizer._backend.add_special_tokens(["<|User|>"])
    tagged = type(pro)(
        type(pro.tokenizer)(pro.tokenizer._backend, ("<|User|>",)), pro.template, pro.tokens_of
    )
    again = planned(question_sample("say <|User|>", "four", "k"), spelled=tagged)
    assert list(again.ids).count(tagged.tokenizer.id_of("<|User|>")) == 1


@pytest.mark.parametrize(
    ("sample", "text", "on_text"),
    [
        (SHOWN, "<bos><b>____<e>What? \nA cat. <eos>", "What? A cat. <eos>"),
        (DRAWN, "<bos>A dog. It runs<b>____", ""),
        (ASKED, "<bos>Two plus two\nfour<eos>", "Two plus twofour<eos>"),
        (text_sample("hello", "k"), "<bos>hello<eos>", "hello<eos>"),
    ],
)
def test_plain_joins_turns_without_tags(sample: Sample, text: str, on_text: str) -> None:
    plan = planned(sample, template="plain", loss_on="text")
    assert read(plan.ids, OLD) == text
    assert learnt(plan) == on_text


def test_loss_on_text_leaves_the_scaffolding_out() -> None:
    assert learnt(planned(ASKED, loss_on="text")) == "Two plus two four<eos>"
    assert learnt(planned(SHOWN, loss_on="text")) == "What? A cat.<eos>"
    assert learnt(planned(ASKED)) == " four<eos>"


def test_turns_repeat_and_a_system_turn_overrides() -> None:
    turns = (
        Turn("system", ("Be brief.",)),
        *(Turn("user", ("a",)), Turn("assistant", ("b",))),
        *(Turn("user", ("c",)), Turn("assistant", ("d",))),
    )
    plan = planned(Sample("text", turns, "k"))
    text = "<bos>Be brief.\n\nUser: a\n\nAssistant: b<eos>User: c\n\nAssistant: d<eos>"
    assert read(plan.ids, OLD) == text
    assert learnt(plan) == " b<eos> d<eos>"


@pytest.mark.parametrize("said", [("",), (" ",), ()])
def test_an_empty_system_turn_is_none_as_in_use(said: tuple[str, ...]) -> None:
    turns = (Turn("system", said), Turn("user", ("a",)), Turn("assistant", ("b",)))
    for style, text in (("chat", "<bos>User: a\n\nAssistant:"), ("plain", "<bos>a\n")):
        answer = " b<eos>" if style == "chat" else "b<eos>"
        assert read(planned(Sample("text", turns, "k"), template=style).ids, OLD) == text + answer
        asked = plan_question("a", (), OLD, style, system="")
        assert read(asked.ids, OLD) == text


def test_interleaved_documents_learn_text_and_codes() -> None:
    turn = Turn("assistant", ("Look ", Item("image", 1), " and ", Item("image", 2, learn=True), " done"))
    plan = planned(Sample("interleaved", (turn,), "k"))
    assert read(plan.ids, OLD) == "<bos>Look <b>____<e> and <b>____<e> done<eos>"
    assert learnt(plan) == "Look  and  done<eos>"
    assert [(span.path, span.item) for span in plan.spans] == [("understanding", 0), ("generation", 1)]


def test_special_tokens_in_a_samples_text_stay_text() -> None:
    for text in ("<end_of_image>", OLD.template.eos, OLD.template.bos):
        for sample in (text_sample(f"x{text}", "k"), question_sample(text, text, "k")):
            plan = planned(sample)
            assert list(plan.ids).count(OLD.eos) == 1
            assert list(plan.ids).count(OLD.bos) == 1
            assert OLD.tokenizer.id_of("<end_of_image>") not in plan.ids


@pytest.mark.parametrize("style", ["chat", "plain"])
@pytest.mark.parametrize("template", ["deepseek-old", "deepseek", "plain"])
def test_training_and_use_share_the_prompt(style: str, template: str) -> None:
    spelled = spelling(template)
    trained = planned(SHOWN, spelled=spelled, template=style)
    asked = plan_question("What? ", [("image", 4)], spelled, style)  # type: ignore[arg-type]
    assert list(trained.ids[: len(asked)]) == list(asked.ids)
    assert trained.text_targets[len(asked) - 1] == trained.ids[len(asked)]
    assert asked.spans == trained.spans

    drawn = planned(DRAWN, spelled=spelled, template=style)
    conditional, unconditional, _ = plan_generation("A dog. It runs", "image", spelled, style)  # type: ignore[arg-type]
    assert list(drawn.ids[: len(conditional)]) == list(conditional)
    assert drawn.spans[0].start == len(conditional)
    dropped = planned(DRAWN, spelled=spelled, template=style, drop_prompt=1.0)
    assert list(dropped.ids[: len(conditional)]) == list(unconditional)
    assert len(conditional) == len(unconditional)


MARKED = [
    ("Is <image> larger than <image>?", ("Is ", 0, " larger than ", 1, "?")),
    ("<image>\nIs it?\n<image>", (0, "\nIs it?\n", 1)),
    ("<image> <image_placeholder>", (0, 1)),
    ("Before it?", (0, 1, "Before it?")),
]


@pytest.mark.parametrize("style", ["chat", "plain"])
@pytest.mark.parametrize(("text", "parts"), MARKED)
def test_marked_items_stand_in_use_where_they_stand_in_training(
    style: str, text: str, parts: tuple[str | int, ...]
) -> None:
    shown = tuple(part if isinstance(part, str) else Item("image", part) for part in parts)
    for task, answer in (("understanding", "Yes"), ("generation", Item("image", None, learn=True))):
        turns = (Turn("user", shown), Turn("assistant", (answer,)))
        trained = planned(Sample(task, turns, "k"), template=style)  # type: ignore[arg-type]
        if task == "generation":
            ids, _, spans = plan_generation(text, "image", OLD, style, [("image", 4)] * 2)  # type: ignore[arg-type]
        else:
            asked = plan_question(text, [("image", 4)] * 2, OLD, style)  # type: ignore[arg-type]
            ids, spans = asked.ids, asked.spans
        assert list(trained.ids[: len(ids)]) == list(ids)
        assert trained.spans[:2] == spans


def test_spans_name_marked_items_by_their_place_among_those_given() -> None:
    spelled = replace(OLD, tokens_of=lambda _: OLD.tokens_of("image"))
    plan = plan_question("<sound> or <image>, <sound>?", [("image", 2), ("sound", 3), ("sound", 5)], spelled)
    assert [(span.modality, span.item, span.length) for span in plan.spans] == [
        ("sound", 1, 3),
        ("image", 0, 2),
        ("sound", 2, 5),
    ]


def test_other_marks_than_items_are_refused() -> None:
    with pytest.raises(BadSample, match="'<image>, <image>' marks 2 places with <image> for 1 items"):
        plan_question("<image>, <image>", [("image", 4)], OLD)
    plan = plan_question("What is <image> in HTML?", [], OLD)  # nothing is shown: these are words
    assert "<image>" in read(plan.ids, OLD)


def test_an_item_stands_where_a_question_of_a_sample_marks_it() -> None:
    sample = understanding_sample("image", None, "This: <image>.", "A cat", "k")
    assert read(planned(sample, template="plain").ids, OLD) == "<bos>This: <b>____<e>.\nA cat<eos>"


def test_unconditional_row_as_in_the_official_code() -> None:
    conditional, unconditional, _ = plan_generation("ab", "image", OLD)
    assert read(conditional, OLD) == "<bos>User: ab\n\nAssistant:<b>"
    assert read(unconditional, OLD) == "<bos>" + "_" * (len(conditional) - 2) + "<b>"


def test_a_prompt_dropped_to_a_single_pad() -> None:
    plan = planned(DRAWN, drop_prompt=1.0, drop_to="pad", close_generated=True)
    assert read(plan.ids, OLD) == "<bos>_<b>____<e><eos>"
    assert plan.spans[0].start == 3
    assert learnt(plan) == "<e><eos>"


@pytest.mark.parametrize("drop_to", ["pad", "pads"])
def test_dropping_keeps_items_of_the_prompt(drop_to: str) -> None:
    turns = (
        Turn("user", ("ab", Item("image", 1), "cd")),
        Turn("assistant", (Item("image", 2, learn=True),)),
    )
    plan = planned(Sample("generation", turns, "k"), template="plain", drop_prompt=1.0, drop_to=drop_to)
    expected = {"pads": "<bos>__<b>____<e>__<b>____", "pad": "<bos>_<b>____<e><b>____"}
    assert read(plan.ids, OLD) == expected[drop_to]
    for span in plan.spans:
        assert read(plan.ids[span.start - 1 : span.start], OLD) == "<b>"


def test_drop_and_cut_come_at_their_rates() -> None:
    plans = [planned(DRAWN, seed, drop_prompt=0.1, first_sentence=0.25) for seed in range(1000)]
    texts = [read(plan.ids, OLD) for plan in plans]
    dropped = sum("dog" not in text for text in texts) / 1000
    cut = sum("dog" in text and "runs" not in text for text in texts) / 1000
    assert 0.07 < dropped < 0.13
    assert 0.19 < cut < 0.27  # 0.25 of those that are not dropped


@pytest.mark.parametrize(
    ("prompt", "first"),
    [
        ("A dog. It runs.", "A dog."),
        ("A 3.5 m wall", "A 3.5 m wall"),
        ("Really?! Yes", "Really?!"),
        ("一只狗。它跑", "一只狗。"),
        ("  one line\nanother", "one line"),
    ],
)
def test_first_sentence(prompt: str, first: str) -> None:
    sample = generation_sample(prompt, "image", None, "k")
    plan = planned(sample, template="plain", first_sentence=1.0)
    assert bytes(int(one) for one in plan.ids[1:-5]).decode() == first


def test_only_generation_is_dropped_or_cut() -> None:
    for sample in (SHOWN, ASKED):
        changed = planned(sample, drop_prompt=1.0, first_sentence=1.0)
        assert list(changed.ids) == list(planned(sample).ids)


def test_text_is_truncated_and_others_are_refused() -> None:
    plan = planned(text_sample("x" * 100, "k"), max_length=10)
    assert len(plan) == 10
    assert (plan.text_targets >= 0).all()  # the last slot predicts what was cut off
    with pytest.raises(BadSample, match="k takes 38 slots, more than max_length 30"):
        planned(DRAWN, max_length=30)
    with pytest.raises(BadSample, match="nothing in k is learnt"):
        planned(question_sample("x" * 600, "y", "k"), max_length=600)


def test_a_conversation_goes_on() -> None:
    turns = [
        Turn("user", (Item("image", None), "What?")),
        Turn("assistant", ("A cat.",)),
        Turn("user", ("Sure?",)),
    ]
    plan = plan_turns(turns, [4], OLD, system="")
    text = "<bos>User: <b>____<e>\nWhat?\n\nAssistant: A cat.<eos>User: Sure?\n\nAssistant:"
    assert read(plan.ids, OLD) == text
    assert (plan.text_targets == -100).all()


def test_templates_by_name() -> None:
    assert resolve_template("deepseek").user == "<|User|>"
    assert TEMPLATES["deepseek-old"].eos == "<｜end▁of▁sentence｜>"
    assert set(TEMPLATES) == set(get_args(TemplateName))
    assert special_tokens(model_block("plain")) == (
        *("<s>", "</s>", "<pad>"),
        *("<begin_of_image>", "<end_of_image>", "<image_placeholder>"),
    )
