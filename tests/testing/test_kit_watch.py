"""Evaluation tasks and callbacks that break one rule each fail that rule; and what every failure says."""

from __future__ import annotations

import pytest

from janus_plugins import Kind
from janus_plugins.testing import CheckReport, check_component

from ..broken_components import spec
from ..broken_components.watched import callback_spec, task_spec

BROKEN = spec.__name__.rpartition(".")[0]


def failed(report: CheckReport) -> set[str]:
    for result in report.failures:  # each says which rule, what was expected and seen, and where to read
        assert result.expected
        assert result.seen
        assert f"docs/plugins/testing.md#{result.rule}; janus_plugins.core.contracts." in result.read
    return {result.rule for result in report.failures}


@pytest.mark.parametrize(
    "made", [task_spec("Counting"), callback_spec("Keeping")], ids=lambda made: made.kind
)
def test_what_keeps_its_contract_passes(made: spec.ComponentSpec) -> None:
    report = check_component(made)
    assert report.count("passed") == len(report.results)


@pytest.mark.parametrize(
    ("name", "rule", "seen"),
    [
        ("uncallable", "callable", "object"),
        ("Scoreless", "scores", "['accuracy']"),
        ("Infinite", "scores", "nan"),
        ("Numpy", "scores", "ndarray is not JSON serializable"),
        ("Raising", "scores", "LookupError: no such thing (tasks.py:"),
        ("Drawing", "same-score", "score"),
        ("Training", "leaves-model", "in training mode"),
        ("Editing", "leaves-model", "changed"),
    ],
)
def test_broken_tasks(name: str, rule: str, seen: str) -> None:
    report = check_component(task_spec(name), raises=False)
    assert failed(report) == {rule}
    assert seen in report.failures[0].seen


@pytest.mark.parametrize(
    ("name", "rules", "seen"),
    [
        ("Idle", {"moments"}, "Idle"),
        ("Misspelt", {"moments"}, "on_step_ends() is no moment. Did you mean 'on_step_end'?"),
        ("Greedy", {"moments"}, "on_checkpoint() is called with 2 arguments"),
        ("HalfStored", {"moments"}, "one of them"),
        ("Raising", {"whole-run"}, "LookupError: no such thing"),
        ("Tensors", {"whole-run"}, "Tensor is not JSON serializable"),
        ("Littering", {"whole-run"}, "rank_1.txt"),
        ("Editing", {"whole-run"}, "was changed"),
        ("Rounding", {"state"}, "'steps': 2"),
        ("Forgetting", {"goes-on"}, "keep what it counts in state_dict"),
        ("Partial", {"ranks-alike"}, "[]"),
    ],
)
def test_broken_callbacks(name: str, rules: set[str], seen: str) -> None:
    report = check_component(callback_spec(name), raises=False)
    assert failed(report) == rules
    assert seen in report.failures[0].seen


@pytest.mark.parametrize(
    ("kind", "factory", "rules"),
    [
        (Kind.UNDERSTANDING_ENCODER, "encoders:build_Unsaveable", {"saved"}),
        (Kind.UNDERSTANDING_ENCODER, "encoders:build_Doubling", {"bf16"}),
        (Kind.UNDERSTANDING_ENCODER, "encoders:build_HalfCut", {"gradients"}),
        (Kind.GENERATION_ENCODER, "encoders:build_Dicing", {"codes", "repeatable"}),
        (Kind.GENERATION_ENCODER, "encoders:build_Negative", {"codes", "trains", "absent"}),
        (Kind.ADAPTER, "joints:build_upcasting", {"bf16"}),
    ],
)
def test_further_broken_components(kind: Kind, factory: str, rules: set[str]) -> None:
    assert failed(check_component(spec.variation(kind, f"{BROKEN}.{factory}"), raises=False)) == rules


def test_what_cannot_be_saved_is_named() -> None:
    report = check_component(
        spec.variation(Kind.UNDERSTANDING_ENCODER, f"{BROKEN}.encoders:build_Unsaveable"), raises=False
    )
    (result,) = report.failures
    assert result.expected == "a state dict of tensors alone, which safetensors can hold"
    assert "_extra_state: dict" in result.seen


def test_a_processor_with_state_outside_itself_is_told() -> None:
    made = spec.variation(Kind.UNDERSTANDING_ENCODER, processor=f"{BROKEN}.processors:Seeding")
    assert failed(check_component(made, raises=False)) == {"global-state"}
