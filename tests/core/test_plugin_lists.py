"""A run file's own lists of plugins: what they leave out is not even imported, and is named when asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from janus_plugins.cli import app
from janus_plugins.core.catalogue import catalogue_for
from janus_plugins.core.errors import PluginError, RunFileError
from janus_plugins.core.kinds import Kind
from janus_plugins.core.plugins import BLOCK_VARIABLE, ONLY_VARIABLE, host
from janus_plugins.core.runfile import dump_run, load_run, locator
from janus_plugins.core.wiring import resolve

LISTS = """
base: digits
plugins:
  {lists}
"""
DIGITS = "janus-plugins"


@pytest.fixture
def site(plugin_site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install the plugins of tests/plugins into this process."""
    monkeypatch.setattr(sys, "path", [str(plugin_site), *sys.path])
    monkeypatch.setenv(BLOCK_VARIABLE, "janus-test-heavy")
    for name in [name for name in sys.modules if name.startswith("janus_test_")]:
        monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    host.cache_clear()
    yield
    host.cache_clear()


def written(folder: Path, lists: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(LISTS.format(lists=lists), encoding="utf-8")
    return path


def statuses(path: Path) -> dict[str, str]:
    run = load_run(path)
    lists = catalogue_for(run, locator(run))
    return {entry.owner.distribution: entry.spec.name for entry in lists.entries()}


@pytest.mark.usefixtures("site")
def test_a_blocked_plugin_is_not_imported(tmp_path: Path) -> None:
    found = statuses(written(tmp_path, "block: [Janus_Test.Good, 'janus-test-twin-a:main']"))
    assert "janus-test-twin-b" in found
    assert not {"janus-test-good", "janus-test-twin-a"} & set(found)
    assert "janus_test_good" not in sys.modules
    assert "janus_test_twin_b" in sys.modules


@pytest.mark.usefixtures("site")
def test_only_allowed_plugins_are_imported_and_the_environment_counts_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, "allow: [janus-plugins, janus-test-good, janus-test-heavy]")
    assert set(statuses(path)) == {DIGITS, "janus-test-good"}  # the heavy one is blocked by the variable
    monkeypatch.setenv(ONLY_VARIABLE, DIGITS)
    host.cache_clear()
    assert set(statuses(path)) == {DIGITS}


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize(
    ("lists", "said"),
    [
        ("block: [janus-test-good]", "plugin janus-test-good:main is blocked (named by plugins.block of"),
        ("allow: [janus-plugins]", "plugins are blocked (not named by plugins.allow of"),
    ],
)
def test_asking_for_what_is_blocked_names_the_list_and_its_place(
    lists: str, said: str, tmp_path: Path
) -> None:
    path = written(tmp_path, lists)
    override = ["model.understanding.image.adapter={use: test-good}"]
    run = load_run(path, override)
    with pytest.raises(PluginError) as refused:
        resolve(run, locate=locator(run))
    assert f"{said} {path}:4)" in str(refused.value)
    named = load_run(path, ["model.understanding.image.adapter={use: janus-test-good/test-good}"])
    with pytest.raises(PluginError, match=r"'janus-test-good/test-good' cannot be had: .*run.yaml:4"):
        resolve(named, locate=locator(named))


@pytest.mark.usefixtures("site")
def test_validate_ends_with_exit_code_3_and_says_what_is_blocked(tmp_path: Path) -> None:
    path = written(tmp_path, "block: [janus-test-good]")
    word = "model.understanding.image.adapter={use: test-good}"
    done = CliRunner().invoke(app, ["validate", str(path), "--set", word])
    assert isinstance(done.exception, PluginError)
    assert done.exception.exit_code == 3
    assert "plugins.block" in str(done.exception)
    assert CliRunner().invoke(app, ["validate", str(path)]).exit_code == 0


@pytest.mark.usefixtures("site")
def test_the_lists_travel_with_a_checkpoint(tmp_path: Path) -> None:
    """A native folder holds the run as `config.yaml`; whoever loads it is bound alike."""
    config = tmp_path / "config.yaml"
    config.write_text(dump_run(load_run(written(tmp_path, "block: [janus-test-good]"))), encoding="utf-8")
    run = load_run(config)
    assert run.plugins.block == ("janus-test-good",)
    assert run.plugins.allow is None
    found = catalogue_for(run, locator(run))
    with pytest.raises(PluginError, match=r"plugins\.block of .*config\.yaml:\d+"):
        found.get(Kind.ADAPTER, "test-good")


def test_lists_are_checked_like_anything_else(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match=r"run\.yaml:4: plugins\.blok: unknown key\. Did you mean 'block'"):
        load_run(written(tmp_path, "blok: [a]"))


@pytest.mark.usefixtures("site")
def test_a_listed_name_that_is_not_installed_is_a_warning_with_the_nearest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    statuses(written(tmp_path, "block: [janus-tset-good, Janus_Test.Good, 'janus-test-twin-a:mian']"))
    said = [record.message for record in caplog.records]
    assert len(said) == 2
    assert all(f"plugins.block of {tmp_path / 'run.yaml'}:4 names" in each for each in said)
    assert said[0].endswith("'janus-tset-good', which is not installed. Did you mean 'janus-test-good'?")
    assert said[1].endswith(
        "'janus-test-twin-a:mian', which is not installed. Did you mean 'janus-test-twin-a:main'?"
    )
