"""The digits source: a fixed, stratified split of real scans."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from janus_plugins.core.samples import Item
from janus_plugins.sources.digits.source import Digits, build, split_rows
from janus_plugins.sources.digits.spec import WORDS, DigitsConfig

pytest.importorskip("sklearn")


def digits(**options: object) -> Digits:
    config = DigitsConfig.model_validate(options)
    return build(config, config.facts())


def test_the_split_is_fixed_stratified_and_complete() -> None:
    labels = np.repeat(np.arange(10), [170, 180, 190, 175, 185, 182, 181, 179, 174, 181])
    split = split_rows(labels, 20, 0)
    assert sorted([*split["train"], *split["test"]]) == list(range(len(labels)))
    for label in range(10):
        share = (labels[split["test"]] == label).sum() / (labels == label).sum()
        assert abs(share - 0.2) < 0.005
    assert (split_rows(labels, 20, 0)["test"] == split["test"]).all()
    assert not np.array_equal(split_rows(labels, 20, 1)["test"], split["test"])


def test_train_and_test_are_the_whole_set_without_overlap() -> None:
    train, test = digits(), digits(split="test")
    keys = [{source[index].key for index in range(len(source))} for source in (train, test)]
    assert len(train) + len(test) == len(keys[0] | keys[1]) == 1797
    assert (len(train), len(test)) == (1438, 359)


def test_understanding_shows_a_picture_and_answers_its_class() -> None:
    from sklearn.datasets import load_digits

    scans, labels = load_digits(return_X_y=True)
    source = digits(size=32)
    for index in range(0, len(source), 200):
        sample = source[index]
        row = int(sample.key.removeprefix("digits[").removesuffix("]"))
        item, question = sample.turns[0].parts
        assert isinstance(item, Item)
        assert isinstance(item.value, Image.Image)
        assert (question, sample.turns[1].parts) == ("Which digit is this?", (WORDS[labels[row]],))
        assert (item.value.size, item.value.mode) == ((32, 32), "RGB")
        shrunk = np.asarray(item.value.convert("L").resize((8, 8), Image.Resampling.BOX), float) * 16 / 255
        assert np.corrcoef(shrunk.ravel(), scans[row])[0, 1] > 0.95


def test_generation_asks_in_every_wording() -> None:
    source = digits(ask="generation", prompts=["a handwritten {word}", "draw {word}"])
    half = len(source) // 2
    first, second = source[5], source[half + 5]
    assert first.key == second.key
    word = str(first.turns[0].parts[0]).removeprefix("a handwritten ")
    assert word in WORDS
    assert second.turns[0].parts == (f"draw {word}",)
    assert first.turns[1].parts[0].learn
    assert "draw seven" in set(source.texts())
    with pytest.raises(IndexError):
        source[len(source)]
