from types import SimpleNamespace

import pytest
from janus_reports.confusion import Confusion
from janus_reports.spec import CONFUSION, LOSS_FILE, ConfusionConfig

import janus_plugins as jp
from janus_plugins.testing import check_component


def test_contracts():
    check_component(CONFUSION)
    check_component(LOSS_FILE)


@pytest.mark.parametrize("option", ["limit", "batch", "max_new_tokens"])
def test_less_than_one_is_refused_before_training(option):
    with pytest.raises(ValueError, match=option):
        ConfusionConfig(**{option: 0})


def test_a_rare_answer_counts_as_much_as_a_common_one():
    answers = ["cat", "cat", "cat", "dog"]
    turns = [(jp.Turn("user", ("what?",)), jp.Turn("assistant", (answer,))) for answer in answers]
    samples = [jp.Sample("text", each, str(at)) for at, each in enumerate(turns)]
    model = SimpleNamespace(ask=lambda questions, **options: ["cat " for _ in questions])
    result = Confusion(ConfusionConfig(batch=3), None)(model, samples, {})
    assert result == {"score": 0.5, "said": {"cat": {"cat": 3}, "dog": {"cat": 1}}}
