"""The sorting source: right answers, and prompts that are on one side of the split only."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from janus_plugins.sources.sorting.source import WORDS, Sorting
from janus_plugins.sources.sorting.spec import SortingConfig


def pairs(**options: object) -> list[tuple[str, str]]:
    source = Sorting(SortingConfig.model_validate(options))
    samples = [source[index] for index in range(len(source))]
    return [(str(sample.turns[0].parts[0]), str(sample.turns[1].parts[0])) for sample in samples]


def test_answers_are_the_numbers_in_order() -> None:
    for question, answer in pairs(count=[2, 3], numbers=6):
        numbers = [WORDS.index(word) for word in question.removeprefix("Put in order: ").split()]
        assert [WORDS.index(word) for word in answer.split()] == sorted(numbers)


def test_every_prompt_is_on_one_side() -> None:
    train, test = ({question for question, _ in pairs(split=side)} for side in ("train", "test"))
    assert len(train) + len(test) == 10 * 9 * 8
    assert not train & test
    assert 0.12 < len(test) / 720 < 0.28


def test_texts_are_those_of_the_samples() -> None:
    source = Sorting(SortingConfig(numbers=4))
    assert list(source.texts()) == [text for pair in pairs(numbers=4) for text in pair]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": [3, 2]}, "must rise"),
        ({"count": [3, 11]}, "at most numbers"),
        ({"count": [7, 7], "numbers": 21}, "more than 500000"),
    ],
)
def test_impossible_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SortingConfig.model_validate(options)
