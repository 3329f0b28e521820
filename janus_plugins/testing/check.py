"""The conformance kit: try one component against everything that its contract asks for."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from janus_plugins.core.specs import ComponentSpec
from janus_plugins.testing.case import Case, Neighbour, cases
from janus_plugins.testing.presets import tiny_options
from janus_plugins.testing.report import Broken, CheckReport, ContractBroken, RuleResult, Skipped, described
from janus_plugins.testing.rules import RULES, Rule, declared


def check_component(
    spec: ComponentSpec,
    *,
    options: Mapping[str, Any] | None = None,
    items: Sequence[object] | None = None,
    neighbour: Neighbour = None,
    skip: Mapping[str, str] | None = None,
    ranks: bool = False,
    raises: bool = True,
) -> CheckReport:
    """Check a component against its contract, on the CPU, in seconds.

    Args:
        spec: its declaration.
        options: its options (default: its config's `tiny()`, else its defaults). Keep them small.
        items: raw items for an encoder's processor, of several lengths where these vary (default: the
            processor's `examples()`; pictures for modality "image").
        neighbour: for an adapter the encoder's facts, for a head its target's (default: whatever fits of
            features, codes, latents and text, each in turn).
        skip: rules to leave out, each with the reason, which stands in the report.
        ranks: also train on two ranks under ZeRO-3 (slow).
        raises: whether to raise where a rule fails.

    Raises:
        ContractBroken: rules failed; the message says of each what was expected, what was seen, and where
            to read.
        TypeError: `spec` is no `ComponentSpec`.
    """
    if not isinstance(spec, ComponentSpec):
        raise TypeError(
            f"check_component takes a ComponentSpec, the one that your janus_components() returns, not "
            f"{spec!r:.60}; an installed component is checked by its name with `janus-plugins check NAME`"
        )
    with TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        given = tiny_options(spec, Path(folder)) if options is None else options
        results = tuple(_results(spec, given, items, neighbour, skip or {}, ranks))
    report = CheckReport(str(spec.kind), spec.name, results)
    if raises and not report.ok:
        raise ContractBroken(report)
    return report


def _results(
    spec: ComponentSpec,
    options: Mapping[str, Any],
    items: Sequence[object] | None,
    neighbour: Neighbour,
    skip: Mapping[str, str],
    ranks: bool,
) -> Iterator[RuleResult]:
    _check_skips(spec, skip)
    try:
        found = list(cases(spec, options, neighbour, items, ranks))
    except Exception as error:
        yield _failed(Rule("options", declared.options), "", spec, error)
        return
    several = len(found) > 1
    for case in found:
        yield from _case_results(case, case.path if several else "", skip)


def _check_skips(spec: ComponentSpec, skip: Mapping[str, str]) -> None:
    unknown = sorted(set(skip) - {rule.name for rule in RULES[spec.kind]})
    if unknown:
        names = ", ".join(rule.name for rule in RULES[spec.kind])
        raise ValueError(f"skip: there is no rule {unknown[0]!r} for the kind {spec.kind}; there are {names}")


def _case_results(case: Case, path: str, skip: Mapping[str, str]) -> Iterator[RuleResult]:
    blocked = ""
    for rule in RULES[case.kind]:
        reason = skip.get(rule.name) or blocked
        if reason:
            yield RuleResult(rule.name, path, "skipped", seen=reason)
            continue
        result = _tried(rule, case, path)
        yield result
        if rule.first and result.status == "failed":
            blocked = f"needs {rule.name}"


def _tried(rule: Rule, case: Case, path: str) -> RuleResult:
    started = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rule.check(case)
    except Skipped as reason:
        return RuleResult(rule.name, path, "skipped", seen=str(reason))
    except Exception as error:
        return _failed(rule, path, case.spec, error, time.perf_counter() - started)
    return RuleResult(rule.name, path, "passed", seconds=time.perf_counter() - started)


def _failed(rule: Rule, path: str, spec: ComponentSpec, error: Exception, seconds: float = 0.0) -> RuleResult:
    """Make a failure of whatever a rule, or the component inside it, raised."""
    expected, seen = rule.summary, described(error)
    if isinstance(error, Broken):
        expected, seen = error.expected, error.seen
    return RuleResult(rule.name, path, "failed", expected, seen, rule.read(spec.kind), seconds)
