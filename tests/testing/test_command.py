"""`janus-plugins check`: what is meant by a name, what is printed, how it ends."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner, Result

from janus_plugins.cli import app
from janus_plugins.core.catalogue import Catalogue, CatalogueEntry
from janus_plugins.core.errors import PluginError, RunFileError
from janus_plugins.core.plan import Owner
from janus_plugins.core.plugins import PluginReport
from janus_plugins.testing.command import check_entries, chosen
from janus_plugins.testing.partners import PARTNERS

from ..broken_components.sources import source_spec

FOUND = Catalogue(
    [CatalogueEntry(spec, Owner("first-plugin", "1")) for spec in PARTNERS]
    + [CatalogueEntry(spec, Owner("second", "1")) for spec in PARTNERS[:1]]
)


def check(*words: str) -> Result:
    return CliRunner().invoke(app, ["check", *words])


def test_what_a_name_means() -> None:
    assert len(chosen(FOUND, None, None)) == 6
    assert len(chosen(FOUND, "partner", "language_model")) == 2
    assert len(chosen(FOUND, "second/partner", None)) == 1
    assert len(chosen(FOUND, "First_Plugin/", None)) == 5
    with pytest.raises(PluginError, match="Did you mean 'partner'"):
        chosen(FOUND, "partne", None)
    with pytest.raises(PluginError, match="Available: partner"):
        chosen(FOUND, "parts", "head")
    failed = Catalogue([], [PluginReport("mine", "main", "1", "failed", "ModuleNotFoundError: no wave")])
    with pytest.raises(
        PluginError, match=r"Plugin mine:main failed to load \(ModuleNotFoundError: no wave\)"
    ):
        chosen(failed, "partner", None)
    with pytest.raises(RunFileError, match="Did you mean 'head'"):
        chosen(FOUND, None, "heads")


def test_one_component_prints_every_rule() -> None:
    done = check("mlp")
    assert done.exit_code == 0
    assert "passed  frozen[features]" in done.output
    assert "skipped ranks[latents]: slow" in done.output


def test_options_are_set_over_the_small_ones_and_json_is_plain() -> None:
    done = check("mlp", "--set", "depth=3", "--json")
    (report,) = json.loads(done.output)
    assert (report["kind"], report["name"], report["ok"]) == ("adapter", "mlp", True)
    assert {rule["status"] for rule in report["rules"]} == {"passed", "skipped"}
    assert check("mlp", "--set", "depth=zero").exit_code == 1
    assert "depth: should be a valid integer" in check("mlp", "--set", "depth=zero").output
    assert "pydantic" not in check("mlp", "--set", "depht=1").output
    assert "depht: mlp has no such option. Did you mean 'depth'?" in check("mlp", "--set", "depht=1").output


def test_a_failure_ends_with_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Catalogue([CatalogueEntry(source_spec("Nameless"), Owner("mine", "1"))])
    monkeypatch.setattr("janus_plugins.core.catalogue.catalogue", lambda: broken)
    done = check()
    assert done.exit_code == 1
    assert "FAILED  samples" in done.output
    assert "read      docs/plugins/testing.md#samples" in done.output


def test_a_missing_extra_is_said_and_fails_nothing() -> None:
    from dataclasses import replace

    spec = replace(source_spec("Words"), requires=("no_such_module",), extra="janus-plugins[none]")
    (report,) = check_entries([CatalogueEntry(spec, Owner("mine", "1"))])
    assert report.ok
    assert "needs janus-plugins[none]" in str(report)
