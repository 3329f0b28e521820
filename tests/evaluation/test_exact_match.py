"""Exact match asks what a sample asks, under its own system prompt, and refuses what cannot be asked at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from janus_plugins.core.errors import DataError
from janus_plugins.core.samples import Item, Sample, Turn, asked, generated, placed, question_sample
from janus_plugins.tasks.exact_match.spec import ExactMatchConfig
from janus_plugins.tasks.exact_match.task import ExactMatch

QUESTION = (Turn("user", ("two?",)), Turn("assistant", ("dos",)))


class Spanish:
    """Stand for a model that knows two words, under one system prompt alone."""

    def ask(self, questions: Sequence[str], *, system: str | None = None, **_: Any) -> list[str]:
        known = {"one?": "uno", "two?": "dos"} if system == "Say it in Spanish." else {}
        return [known.get(question, "?") for question in questions]


def test_marks_in_a_text_without_items_are_text() -> None:
    class Told:
        def ask(self, questions: Sequence[str], **options: Any) -> list[str]:
            assert options["items"] == {}  # which says so
            return ["html" for _ in questions]

    config, model = ExactMatchConfig(), Told()
    sample: Any = [question_sample("Where is <image> a tag?", "HTML", "k")]
    assert ExactMatch(config, config.facts())(model, sample, {})["score"] == 1  # type: ignore[arg-type]


def scored(*samples: Sample, **options: Any) -> dict[str, Any]:
    config = ExactMatchConfig(**options)
    model: Any = Spanish()
    return ExactMatch(config, config.facts())(model, samples, {})


def test_questions_are_asked_under_their_own_system_prompt() -> None:
    system = Turn("system", ("Say it in Spanish.\n",))
    spanish = Sample("text", (system, *QUESTION), "k")
    other = Sample("text", (Turn("system", ("",)), *QUESTION), "k")
    told = scored(spanish, question_sample("one?", "uno", "k"), other, spanish, batch=3)
    assert told == {"score": 0.5, "samples": 4}


@pytest.mark.parametrize(
    "turns",
    [
        (Turn("user", ("one?",)), Turn("assistant", ("uno",)), *QUESTION),
        (Turn("assistant", ("uno",)), *QUESTION),
        (Turn("user", (Item("image", None),)), *QUESTION),
    ],
)
def test_a_conversation_is_not_asked_as_one_question(turns: tuple[Turn, ...]) -> None:
    with pytest.raises(DataError, match=r"talk\[3\]: has . turns .*: make a row of each"):
        scored(Sample("text", turns, "talk[3]"))


SEEN, HEARD = Item("image", 1), Item("audio", 2)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ((SEEN, "a", "b"), "ab"),
        (("a", SEEN), "a<image>"),
        ((HEARD, SEEN, "a"), "a"),  # by modality, as items are given
        ((SEEN, HEARD, "a"), "<image><audio>a"),
        ((SEEN, "a", HEARD, "b"), "<image>a<audio>b"),
    ],
)
def test_items_that_do_not_come_first_are_marked(parts: tuple[Any, ...], text: str) -> None:
    asking = asked(Sample("understanding", (Turn("user", parts),), "k"))
    assert asking == (text, [part for part in parts if isinstance(part, Item)])
    if "<" in text:
        assert placed(*asking) == parts


def test_a_prompt_that_shows_items_is_not_taken_for_its_words() -> None:
    made = Turn("assistant", (Item("image", None, learn=True),))
    with pytest.raises(DataError, match="k: its prompt shows items"):
        generated(Sample("generation", (Turn("user", (SEEN, "Larger")), made), "k"))


def test_words_alone_ask_nothing() -> None:
    assert asked(Sample("text", QUESTION[1:], "k")) == ("", [])
