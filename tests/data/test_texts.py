"""The run's own text: train sources only, the template's scaffolding included."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from janus_plugins.core.errors import DataError, PluginError
from janus_plugins.core.samples import Sample, text_sample
from janus_plugins.data import texts as data_texts
from janus_plugins.data.texts import run_texts

from .toys import toy_plan


def test_texts_of_train_sources_and_template() -> None:
    sources = {
        "words": {"task": "text", "size": 3, "broken": (1,)},
        "shown": {"task": "understanding", "size": 1},
        "held": {"task": "text", "size": 50, "split": "test"},
    }
    texts = list(run_texts(toy_plan(sources)))
    assert texts == ["Q: \nA:\n", "text 0", "text 2", "What?", "wave 0"]


def test_a_stream_without_texts_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\.words is read in order and offers no texts"):
        list(run_texts(toy_plan({"words": {"task": "text", "streaming": True}})))


class Broken:
    """Reads every sample but one, whose code has a mistake."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Sample:
        if index:
            raise NameError("name 'indx' is not defined")
        return text_sample("text 0", "broken[0]")


class Mistaken(Broken):
    def texts(self) -> Iterator[str]:
        raise NameError("name 'row' is not defined")


def test_mistakes_of_a_source_are_counted_later_or_named(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = toy_plan({"words": {"task": "text"}})
    monkeypatch.setattr(data_texts, "open_source", lambda part: Broken())
    assert "text 0" in list(run_texts(plan))
    monkeypatch.setattr(data_texts, "open_source", lambda part: Mistaken())
    with pytest.raises(PluginError, match=r"words: .* giving its texts failed.*'row' is not defined"):
        list(run_texts(plan))
