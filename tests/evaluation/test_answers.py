"""Answers with items are scored by what stands where, and by what a classifier of real pictures reads."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from janus_plugins.core.errors import BadSample, DataError
from janus_plugins.core.samples import Item, Sample, generated, generation_sample
from janus_plugins.data.sources import open_source
from janus_plugins.door import compose
from janus_plugins.evaluation.pictures import prompts_of
from janus_plugins.inference.artefacts import Generated, Interleaved
from tests.tiny import write_tiny

pytest.importorskip("sklearn")

from janus_plugins.tasks.classified.answers import ClassifiedAnswers, spread
from janus_plugins.tasks.classified.answers_spec import ClassifiedAnswersConfig
from janus_plugins.tasks.classified.judge import Judge, samples_of

MORE = """
base: tiny.yaml
data:
  count: {use: counting, task: interleaved, split: test, options: {ask: picture, size: 8, split: test, most: 2}}
  next: {use: counting, task: generation, split: test, options: {ask: next, size: 8, split: test}}
"""
OPTIONS = {"train_source": "draw", "limit": 12, "guidance": 1.0, "max_new_tokens": 6, "max_items": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("more")
    write_tiny(folder)
    (folder / "more.yaml").write_text(MORE)
    return compose(folder / "more.yaml")


@pytest.fixture(scope="module", autouse=True)
def _one_judge(model: Any) -> Iterator[None]:
    """Train the classifier once for all tests."""
    judge = Judge(model, opened(model, "draw"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("janus_plugins.tasks.classified.answers.Judge", lambda model, source: judge)
        yield


def opened(model: Any, name: str) -> Any:
    return open_source(model.plan.data[name].part)


def classified_answers(model: Any, source: str, options: dict[str, Any]) -> dict[str, Any]:
    config = ClassifiedAnswersConfig.model_validate(options)
    others = {name: opened(model, name) for name in config.facts().sources}
    return ClassifiedAnswers(config, config.facts())(model, opened(model, source), others)


def made(item: Item) -> Generated:
    return Generated("", 0, 0, item.value, torch.zeros(16), item.modality, 1.0, 1.0)


def answers(model: Any, source: str, limit: int = 12) -> list[list[Any]]:
    """Return the samples' own answers, as if the model had made them."""
    samples: list[Sample] = samples_of(opened(model, source))
    samples = [samples[index] for index in spread(len(samples), limit)]
    return [
        [part if isinstance(part, str) else made(part) for part in sample.turns[1].parts]
        for sample in samples
    ]


def scored(model: Any, monkeypatch: pytest.MonkeyPatch, said: list[list[Any]], source: str) -> dict[str, Any]:
    def generate(prompts: list[str], **options: Any) -> list[Any]:
        assert [len(shown) for shown in options["items"]["image"]] == [1] * len(prompts)
        if options.get("interleaved"):
            return [Interleaved(prompt, 0, 0, tuple(one)) for prompt, one in zip(prompts, said, strict=True)]
        return [one[0] for one in said]

    monkeypatch.setattr(model, "generate", generate)
    return classified_answers(model, source, OPTIONS)


def test_the_samples_own_answers_are_right(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for source in ("count", "next"):
        told = scored(model, monkeypatch, answers(model, source), source)
        assert told == {"score": 1.0, "samples": 12, "text": 1.0, "items": 1.0}


def test_wrong_text_wrong_pictures_and_missing_ones_count_apart(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = answers(model, "count")
    spelt = [[f" {part.upper()} " if isinstance(part, str) else part for part in one] for one in own]
    assert scored(model, monkeypatch, spelt, "count")["score"] == 1.0
    worded = [["nine", *one[1:]] if index < 3 else one for index, one in enumerate(own)]
    told = scored(model, monkeypatch, worded, "count")
    wrong = sum(one[0] != "nine" for one in own[:3])
    assert told["items"] == 1.0
    assert told["text"] == told["score"] == pytest.approx(1 - wrong / 12)
    nothing = [[part for part in one if isinstance(part, str)] for one in own]
    told = scored(model, monkeypatch, nothing, "count")
    assert (told["score"], told["text"], told["items"]) == (0.0, 0.0, 0.0)
    moved = own[1:] + own[:1]
    swapped = [
        [part if isinstance(part, str) else other[1] for part in one]
        for one, other in zip(own, moved, strict=True)
    ]
    told = scored(model, monkeypatch, swapped, "count")
    assert told["text"] == 1.0
    assert told["score"] < 0.8


def test_a_model_that_has_learnt_nothing_is_scored(model: Any) -> None:
    told = classified_answers(model, "count", {**OPTIONS, "limit": 4})
    assert told["samples"] == 4
    assert told["score"] == 0.0


def test_refusals_and_prompts_without_pictures(model: Any) -> None:
    with pytest.raises(DataError, match="answers hold items"):
        classified_answers(model, "sort", {"train_source": "draw", "limit": 2})
    assert "The next digit." not in prompts_of(model.plan, "image")


@pytest.mark.parametrize(("number", "limit"), [(399, 200), (12, 12), (7, 3), (2, 5), (5, None)])
def test_a_limit_is_spread_over_the_whole_source(number: int, limit: int | None) -> None:
    chosen = spread(number, limit)
    assert len(chosen) == min(number, limit or number)
    gaps = {after - before for before, after in itertools.pairwise([*chosen, number])}
    assert chosen[0] == 0
    assert max(gaps) - min(gaps) <= 1


class Damaged:
    """Pictures of which one cannot be read and one's file is broken, and good ones."""

    def __init__(self, source: Any, good: int) -> None:
        self._source, self._good = source, good

    def __len__(self) -> int:
        return self._good + 2

    def __getitem__(self, index: int) -> Sample:
        if index == 0:
            raise BadSample("prompt is empty")
        return (
            generation_sample("a kite", "image", b"no picture", "1")
            if index == 1
            else self._source[index - 2]
        )


def test_pictures_to_learn_from_that_cannot_be_read_are_passed_over(model: Any) -> None:
    source = opened(model, "draw")
    judge = Judge(model, Damaged(source, 40))
    assert judge.passed_over() == {"unreadable": 2}
    shown = [generated(source[index])[1].value for index in range(40)]
    whole = Judge(model, [source[index] for index in range(40)])
    assert whole.passed_over() == {}
    assert list(judge.read_real(shown)) == list(whole.read_real(shown))
    with pytest.raises(DataError, match="no picture to learn from can be read; the last: "):
        Judge(model, Damaged(source, 0))
