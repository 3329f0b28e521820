"""Tables print names and texts as they are: brackets are no markup, colons no pictures."""

from __future__ import annotations

import pytest

from janus_plugins.core.plugins import ComponentReport, PluginReport
from janus_plugins.door import plan
from janus_plugins.model.explain import explain
from janus_plugins.tables import print_evaluation, print_explanation, print_plugins
from tests.tiny import write_tiny

NAME = "own [red] :fire:"
STAGE = "first [/red]"


def test_names_of_scores_are_data(capsys):
    print_evaluation({"cap[/x]": 0.5, "ceilings": {"[bold]real": 1.0}, "note": ":fire: [/]"})
    said = capsys.readouterr().out
    assert all(text in said for text in ("cap[/x]", "ceilings.[bold]real", ":fire: [/]"))


def test_an_explanation_keeps_brackets(tmp_path, capsys):
    run = plan(write_tiny(tmp_path), [f"name={NAME!r}", f"stages.tokenizer.name={STAGE!r}"])
    print_explanation(explain(run))
    said = capsys.readouterr().out
    assert f"{NAME}: parts" in said
    assert f"stage {STAGE}: 2 steps" in said
    assert "image -> [4, 16]" in said


@pytest.mark.parametrize("names", [[], ["one", "two"]])
def test_every_row_of_a_failed_plugin_says_why(names, capsys):
    components = tuple(ComponentReport("head", name, "predicts well", "its plugin failed") for name in names)
    error = "head/one is already offered by other:entry; rename one"
    print_plugins([PluginReport("acme", "entry", "1.0", "failed", error, components=components)])
    rows = capsys.readouterr().out.splitlines()[1:]
    assert len(rows) == (len(names) or 1)
    assert all("failed" in row and row.endswith(f"entry 'entry': {error}") for row in rows)
