"""Heads, language models and sources that break one rule each fail that rule."""

from __future__ import annotations

from dataclasses import replace

import pytest

from janus_plugins import Kind
from janus_plugins.testing import check_component
from janus_plugins.testing.partners import PARTNERS

from ..broken_components.sources import source_spec

BROKEN = source_spec.__module__.rpartition(".")[0]
SPECS = {spec.kind: replace(spec, name="tried") for spec in PARTNERS}


def failed(kind: Kind, factory: str = "") -> set[str]:
    spec = replace(SPECS[kind], factory=f"{BROKEN}.{factory}") if factory else SPECS[kind]
    return {result.label for result in check_component(spec, raises=False).failures}


@pytest.mark.parametrize("kind", list(SPECS), ids=str)
def test_the_partners_keep_their_own_contracts(kind: Kind) -> None:
    assert failed(kind) == set()


def test_a_component_that_is_large_is_said_to_take_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert failed(Kind.ADAPTER) == set()
    assert caplog.text == ""
    monkeypatch.setattr("janus_plugins.testing.rules.built.LARGE", 10)
    assert failed(Kind.ADAPTER) == set()
    assert "adapter/tried is checked with 0 million parameters, which takes long" in caplog.text


@pytest.mark.parametrize(
    ("factory", "rule"),
    [
        ("Mean", "losses[codes]"),
        ("Half", "bf16[codes]"),
        ("Relative", "alone[latents]"),
        ("Blind", "losses[text]"),
        ("Dice", "sample[text]"),
        ("Beyond", "sample[codes]"),
        ("Mute", "logits[text]"),
    ],
)
def test_broken_heads(factory: str, rule: str) -> None:
    assert rule in failed(Kind.HEAD, f"heads:build_{factory}")


@pytest.mark.parametrize(
    ("factory", "rules"),
    [
        ("Leaking", {"packed"}),
        ("Forgetting", {"cache"}),
        ("Staring", {"padding"}),
        ("Causal", {"blocks"}),
        ("Gazing", {"blocks"}),
        ("Scaling", {"checkpointing"}),
        ("Refusing", {"text-head", "trains"}),
        ("Short", {"hidden"}),
        ("Adding", {"inputs"}),
    ],
)
def test_broken_language_models(factory: str, rules: set[str]) -> None:
    assert rules <= failed(Kind.LANGUAGE_MODEL, f"language:build_{factory}")


@pytest.mark.parametrize("name", ["Words", "Stream"])
def test_sources_that_keep_their_contract(name: str) -> None:
    assert check_component(source_spec(name)).ok


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("Undeclared", "samples"),
        ("Unasked", "samples"),
        ("Nameless", "samples"),
        ("Empty", "samples"),
        ("Moody", "same-samples"),
        ("Silent", "texts"),
        ("Restarting", "resumes"),
        ("Wordy", "resumes"),
    ],
)
def test_broken_sources(name: str, rule: str) -> None:
    report = check_component(source_spec(name), raises=False)
    assert rule in {result.rule for result in report.failures}
