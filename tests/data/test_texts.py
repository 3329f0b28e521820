"""The run's own text: train sources only, the template's scaffolding included."""

from __future__ import annotations

import pytest

from janus_plugins.core.errors import DataError
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
