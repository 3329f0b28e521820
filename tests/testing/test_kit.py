"""Components that break one rule each fail that rule; one that breaks none passes."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from janus_plugins import Kind
from janus_plugins.testing import CheckReport, ContractBroken, check_component
from janus_plugins.testing.partners import PARTNERS, PartnerCodecConfig

from ..broken_components import configs, heavy, spec

BROKEN = spec.__name__.rpartition(".")[0]
UNDERSTANDING, GENERATION, ADAPTER = Kind.UNDERSTANDING_ENCODER, Kind.GENERATION_ENCODER, Kind.ADAPTER


def failed(report: CheckReport) -> set[str]:
    return {result.rule for result in report.failures}


def tried(kind: Kind, factory: str = "", processor: str = "", config: object = None) -> CheckReport:
    targets = [f"{BROKEN}.{target}" if target else "" for target in (factory, processor)]
    return check_component(spec.variation(kind, *targets, config=config), raises=False)


@pytest.mark.parametrize("kind", [UNDERSTANDING, GENERATION, ADAPTER])
def test_a_component_that_keeps_its_contract_passes(kind: Kind) -> None:
    report = check_component(spec.variation(kind))
    assert report.ok
    assert report.count("passed") > 12


@pytest.mark.parametrize(
    ("factory", "rules"),
    [
        ("wide", {"features", "trains", "absent"}),
        ("build_Mixing", {"alone"}),
        ("build_Editing", {"inputs"}),
        ("build_Unfreezing", {"frozen"}),
        ("build_Cut", {"gradients"}),
        ("build_Unused", {"gradients"}),
        ("build_Dividing", {"dummy", "absent"}),
        ("build_RootOfZero", {"dummy", "absent"}),
        ("build_Skipping", {"absent"}),
        ("build_FullPrecision", {"bf16"}),
        ("build_Hidden", {"saved", "device"}),
        ("build_Constant", {"items-apart"}),
        ("build_Random", {"repeatable"}),
        ("on_the_cpu", {"meta"}),
        ("build_Numbered", {"device"}),
        ("no_module", {"builds"}),
    ],
)
def test_broken_encoders_fail_the_right_rule(factory: str, rules: set[str]) -> None:
    assert failed(tried(UNDERSTANDING, f"encoders:{factory}")) == rules


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factory", "seen"),
    [
        ("OnOneRank", r"rank 1 \(exit status 1\): .*LookupError: no such thing"),
        ("Skipping", r"rank \d \(exit status 1\): |no end after"),
        ("Waiting", "no end after 60 s: the ranks wait for one another"),
    ],
)
def test_two_ranks_of_a_broken_encoder(factory: str, seen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("janus_plugins.testing.ranks.PATIENCE", 60.0)
    made = spec.variation(UNDERSTANDING, f"{BROKEN}.encoders:build_{factory}")
    report = check_component(made, raises=False, ranks=True)
    (failure,) = (result for result in report.failures if result.rule == "ranks")
    assert re.search(seen, failure.seen)


@pytest.mark.slow
def test_two_ranks_of_an_encoder_that_keeps_its_contract() -> None:
    assert check_component(spec.variation(UNDERSTANDING), ranks=True).ok


@pytest.mark.parametrize(
    ("factory", "rules"),
    [
        ("build_OutOfRange", {"codes", "trains", "absent"}),
        ("build_Floats", {"codes", "trains", "absent"}),
        ("build_Short", {"codes", "trains", "absent"}),
    ],
)
def test_broken_codecs_fail_the_right_rule(factory: str, rules: set[str]) -> None:
    assert failed(tried(GENERATION, f"encoders:{factory}")) == rules


@pytest.mark.parametrize(
    ("processor", "rule"),
    [
        ("WithLambda", "pickles"),
        ("Drawing", "global-state"),
        ("Counting", "global-state"),
        ("EditingItem", "arrays"),
        ("Credulous", "refuses"),
        ("OtherDummy", "dummy-arrays"),
        ("NanDummy", "dummy"),
        ("Miscounting", "features"),
    ],
)
def test_broken_processors_fail_the_right_rule(processor: str, rule: str) -> None:
    assert rule in failed(tried(UNDERSTANDING, processor=f"processors:{processor}"))


def test_a_lambda_breaks_nothing_else() -> None:
    assert failed(tried(UNDERSTANDING, processor="processors:WithLambda")) == {"pickles"}


def test_artefacts_that_are_not_written() -> None:
    assert failed(tried(GENERATION, processor="processors:Unwritable")) == {"artefacts"}


@pytest.mark.parametrize(
    ("factory", "rules"),
    [
        ("build_averaging", {"mixed-lengths"}),
        ("build_clipping", {"inputs", "trains", "absent"}),
        ("build_leaking", {"frozen"}),
        ("build_pooling", {"embeddings", "token-counts", "mixed-lengths", "trains", "absent"}),
    ],
)
def test_broken_adapters_fail_the_right_rule(factory: str, rules: set[str]) -> None:
    assert failed(tried(ADAPTER, f"joints:{factory}")) == rules


def test_batch_statistics_are_batch_mates() -> None:
    assert "alone" in failed(tried(ADAPTER, "joints:build_normalising"))


def test_facts_that_do_not_fit_the_model() -> None:
    assert "wiring" in failed(tried(ADAPTER, config=configs.NarrowConfig))
    assert failed(tried(ADAPTER, config=configs.UntypedConfig)) == {"options"}


def test_a_spec_that_imports_torch() -> None:
    report = tried(UNDERSTANDING, config=heavy.HeavyConfig)
    assert failed(report) == {"listing"}
    assert "torch imported" in report.failures[0].seen


def test_a_failure_says_what_was_expected_seen_and_where_to_read() -> None:
    with pytest.raises(ContractBroken) as caught:
        check_component(spec.variation(UNDERSTANDING, f"{BROKEN}.encoders:wide"))
    text = str(caught.value)
    assert "expected  features [N, T, facts.width] of shape [1, 3, 8]" in text
    assert "seen      [1, 3, 9]" in text
    assert "docs/plugins/testing.md#features; janus_plugins.core.contracts.UnderstandingEncoder" in text
    assert not caught.value.report.ok


def test_a_rule_can_be_skipped_with_a_reason_and_only_by_its_name() -> None:
    mixing = spec.variation(UNDERSTANDING, f"{BROKEN}.encoders:build_Mixing")
    report = check_component(mixing, skip={"alone": "subtracts the mean on purpose"})
    assert [(one.rule, one.seen) for one in report.results if one.rule == "alone"] == [
        ("alone", "subtracts the mean on purpose")
    ]
    with pytest.raises(ValueError, match="there is no rule 'along'"):
        check_component(mixing, skip={"along": "?"})


@pytest.mark.parametrize("given", ["patches", [], None])
def test_what_is_no_spec_is_told_with_what_to_give(given: object) -> None:
    with pytest.raises(TypeError, match=r"takes a ComponentSpec, .* not .*; .* `janus-plugins check NAME`"):
        check_component(given)  # type: ignore[arg-type]


def test_options_that_do_not_validate_are_a_failed_rule() -> None:
    report = check_component(spec.variation(ADAPTER), options={"depth": 3}, raises=False)
    assert failed(report) == {"options"}
    assert "depth" in report.failures[0].seen


def test_several_codes_a_slot_are_a_path_of_their_own() -> None:
    beside = PartnerCodecConfig(codebooks=3).facts()
    for kind in (Kind.ADAPTER, Kind.HEAD):
        partner = next(one for one in PARTNERS if one.kind == kind)
        assert check_component(partner, neighbour=beside).ok
        assert {result.path for result in check_component(partner).results} >= {
            "codes",
            "codebooks",
            "latents",
        }


@pytest.mark.parametrize(("factory", "rule"), [("build_OneCode", "sample"), ("build_EachCode", "losses")])
def test_broken_heads_of_several_codes_fail_the_right_rule(factory: str, rule: str) -> None:
    partner = next(one for one in PARTNERS if one.kind == Kind.HEAD)
    broken = replace(partner, factory=f"{BROKEN}.heads:{factory}")
    report = check_component(broken, neighbour=PartnerCodecConfig(codebooks=3).facts(), raises=False)
    assert rule in failed(report)
