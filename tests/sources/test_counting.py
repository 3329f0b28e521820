"""The counting source: right words and pictures in turn, from one side of the digits' split."""

from __future__ import annotations

import numpy as np
import pytest

from janus_plugins.core.samples import Item, Sample
from janus_plugins.sources.digits.counting import Counting, build
from janus_plugins.sources.digits.counting_spec import CountingConfig
from janus_plugins.sources.digits.source import picture, split_rows
from janus_plugins.sources.digits.spec import WORDS

pytest.importorskip("sklearn")


def counting(**options: object) -> Counting:
    config = CountingConfig.model_validate(options)
    return build(config, config.facts())


@pytest.fixture(scope="module")
def classes() -> dict[bytes, set[str]]:
    """Return which digits each picture of the train side is a scan of."""
    from sklearn.datasets import load_digits

    scans, labels = load_digits(return_X_y=True)
    found: dict[bytes, set[str]] = {}
    for row in split_rows(labels, 20, 0)["train"]:
        found.setdefault(picture(scans[row].reshape(8, 8), 16).tobytes(), set()).add(WORDS[labels[row]])
    return found


def parts(sample: Sample) -> tuple[list[object], list[object]]:
    asked, said = sample.turns
    return list(asked.parts), list(said.parts)


@pytest.mark.parametrize("ask", ["words", "picture"])
def test_counts_in_words_and_pictures(ask: str, classes: dict[bytes, set[str]]) -> None:
    source = counting(ask=ask)
    for index in range(0, len(source), 97):
        asked, said = parts(source[index])
        words, items = said[::2], said[1::2]
        first = WORDS.index(str(words[0]))
        assert words == list(WORDS[first : first + len(words)])
        assert 1 <= len(words) <= 3
        for word, item in zip(words, items, strict=True):
            assert isinstance(item, Item)
            assert item.learn
            assert word in classes[item.value.tobytes()]  # type: ignore[attr-defined]
        if ask == "words":
            assert asked == [f"Count from {words[0]} to {words[-1]}."]
        else:
            (shown, prompt) = asked
            assert prompt == f"Count on to {words[-1]}."
            assert isinstance(shown, Item)
            assert not shown.learn
            assert WORDS[first - 1] in classes[shown.value.tobytes()]  # type: ignore[attr-defined]


def test_the_next_digit_follows_a_picture(classes: dict[bytes, set[str]]) -> None:
    source = counting(ask="next")
    assert len(source) == 1438
    for index in range(0, len(source), 53):
        sample = source[index]
        assert sample.task == "generation"
        (shown, prompt), (made,) = parts(sample)
        assert prompt == "The next digit."
        assert isinstance(shown, Item)
        assert isinstance(made, Item)
        (one,), (other,) = (classes[item.value.tobytes()] for item in (shown, made))  # type: ignore[attr-defined]
        assert WORDS.index(other) == (WORDS.index(one) + 1) % 10


def test_a_sample_is_the_same_each_time_and_sides_share_no_scan(classes: dict[bytes, set[str]]) -> None:
    first, again = counting()[7], counting()[7]
    assert first.key == again.key
    pairs = zip(parts(first)[1][1::2], parts(again)[1][1::2], strict=True)
    assert all(np.array_equal(one.value, other.value) for one, other in pairs)  # type: ignore[attr-defined]
    test = counting(split="test", ask="picture")
    shown = {parts(test[index])[0][0].value.tobytes() for index in range(len(test))}  # type: ignore[attr-defined]
    assert len(shown & set(classes)) <= 3  # a few scans are equal
    with pytest.raises(IndexError):
        test[len(test)]


def test_every_word_is_in_the_texts() -> None:
    assert "Count from two to four." in set(counting().texts())
    assert "Count on to nine." in set(counting(ask="picture").texts())
    assert set(WORDS) < set(counting(ask="next").texts())
