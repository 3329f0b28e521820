"""Every shipped component passes the kit."""

from __future__ import annotations

import pytest

from janus_plugins.core.catalogue import CatalogueEntry, catalogue
from janus_plugins.core.plugins import missing_modules
from janus_plugins.testing import check_component
from janus_plugins.testing.rules import RULES

SHIPPED = [entry for entry in catalogue().entries() if entry.owner.distribution == "janus-plugins"]
PARALLEL = {kind for kind, rules in RULES.items() if any(rule.name == "ranks" for rule in rules)}


def label(entry: CatalogueEntry) -> str:
    return f"{entry.spec.kind}/{entry.spec.name}"


@pytest.mark.parametrize("entry", SHIPPED, ids=label)
def test_shipped_component(entry: CatalogueEntry) -> None:
    missing = missing_modules(entry.spec)
    if missing:
        pytest.skip(f"needs {entry.spec.extra or missing}")
    report = check_component(entry.spec)
    assert report.count("passed") > 5


@pytest.mark.slow
@pytest.mark.parametrize("entry", [entry for entry in SHIPPED if entry.spec.kind in PARALLEL], ids=label)
def test_shipped_component_on_two_ranks(entry: CatalogueEntry) -> None:
    if missing_modules(entry.spec):
        pytest.skip(f"needs {entry.spec.extra}")
    report = check_component(entry.spec, ranks=True)
    assert any(result.rule == "ranks" and result.status == "passed" for result in report.results)
