"""The plugin host against real installed distributions, good and bad, and against every bad return."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from janus_plugins import __version__
from janus_plugins.core.errors import PluginError
from janus_plugins.core.plan import Owner
from janus_plugins.core.plugins import InstalledEntry, PluginHost, PluginList, PluginReport, host, plugins
from janus_plugins.core.specs import CONTRACT_VERSION

LIST = """
import dataclasses, json, sys, time, pydantic
started = time.process_time()  # others may use the machine
import janus_plugins
reports = janus_plugins.plugins()
seconds = time.process_time() - started
fields = [each.name for each in dataclasses.fields(reports[0]) if each.name != "exception"]
rows = {report.name: {name: getattr(report, name) for name in fields} for report in reports}
print(json.dumps({"reports": rows, "seconds": seconds, "torch": "torch" in sys.modules}))
"""
GOOD = """
from janus_plugins import CONTRACT_VERSION, ComponentConfig, ComponentSpec, Kind, hookimpl

def spec(name, **changes):
    fields = dict(kind=Kind.HEAD, config=ComponentConfig, factory="a:b", contract=CONTRACT_VERSION)
    return ComponentSpec(name=name, **{**fields, **changes})
"""


def run_listing(site: Path, **variables: str) -> tuple[dict[str, Any], str]:
    """List the plugins in a fresh process with `site` on the path; return its answer and its stderr."""
    environment = {**os.environ, "PYTHONPATH": str(site), **variables}
    done = subprocess.run(
        [sys.executable, "-c", LIST], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def listed(plugin_site: Path) -> dict[str, dict[str, Any]]:
    """Every installed plugin's report, the heavy one included."""
    answer: dict[str, dict[str, Any]] = run_listing(plugin_site)[0]["reports"]
    return answer


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Load plugins given as source text by module name, each from a distribution of that name."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def load_all(**sources: str) -> dict[str, PluginReport]:
        entries = []
        for name, source in sources.items():
            (tmp_path / f"{name}.py").write_text(source)
            monkeypatch.delitem(sys.modules, name, raising=False)
            entries.append(entry_of(name))
        importlib.invalidate_caches()
        return {report.distribution: report for report in PluginHost(entry_points=entries).reports}

    return load_all


def entry_of(module: str, name: str = "main", distribution: str = "") -> InstalledEntry:
    """Make an entry point by hand."""
    return InstalledEntry(Owner(distribution or module, "1.0"), EntryPoint(name, module, "janus_plugins"))


def test_good_plugins_load_whatever_the_others_do(listed: dict[str, dict[str, Any]]) -> None:
    statuses = {name: report["status"] for name, report in listed.items() if name.startswith("janus-test-")}
    assert statuses == {
        "janus-test-broken:main": "failed",
        "janus-test-exits:main": "failed",
        "janus-test-future:main": "failed",
        "janus-test-good:main": "ok",
        "janus-test-heavy:main": "ok",
        "janus-test-misspelt:main": "failed",
        "janus-test-needy:main": "ok",
        "janus-test-raising:main": "failed",
        "janus-test-twin-a:main": "ok",
        "janus-test-twin-b:main": "ok",
    }
    assert listed["janus-plugins:builtin"]["status"] == "ok"
    assert list(listed) == sorted(listed)
    assert listed["janus-test-good:main"]["version"] == "1.2"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("broken", "ModuleNotFoundError: No module named 'janus_test_no_such_module'"),
        ("exits", "SystemExit: this plugin ends the program"),
        ("raising", "LookupError: the hook of this plugin raises"),
        ("misspelt", "there is no hook 'janus_component'. Did you mean 'janus_components'?"),
        ("future", "wrong contract version: adapter/test-future"),
        ("future", f"contract {CONTRACT_VERSION + 1}, janus-plugins"),
        ("future", f"offers {CONTRACT_VERSION}; next: pip install --upgrade janus-plugins"),
    ],
)
def test_a_report_says_what_went_wrong(listed: dict[str, dict[str, Any]], name: str, said: str) -> None:
    assert said in listed[f"janus-test-{name}:main"]["error"]


def test_components_are_listed_with_their_status(listed: dict[str, dict[str, Any]]) -> None:
    def components(name: str) -> list[list[str]]:
        found: list[list[str]] = listed[f"janus-test-{name}:main"]["components"]
        return found

    assert components("good") == [["adapter", "test-good", "an adapter for tests", "ok"]]
    assert components("needy")[0][3] == "needs janus-test-needy[library]"
    assert components("future")[0][3].startswith("wrong contract version")
    assert components("broken") == []


def test_a_plugin_that_imports_torch_is_named_with_its_load_time(listed: dict[str, dict[str, Any]]) -> None:
    heavy, good = listed["janus-test-heavy:main"], listed["janus-test-good:main"]
    assert heavy["note"] == "imports torch"
    assert good["note"] == ""
    assert heavy["load_seconds"] > 10 * good["load_seconds"]


def test_listing_is_quick_and_imports_no_torch(plugin_site: Path) -> None:
    times = []
    for _ in range(8):  # the machine may be busy: the quickest counts
        answer, _ = run_listing(plugin_site, JANUS_PLUGINS_BLOCK="janus-test-heavy")
        assert not answer["torch"]
        assert answer["reports"]["janus-plugins:builtin"]["status"] == "ok"
        times.append(answer["seconds"])
        if times[-1] <= 0.5:
            break
    assert min(times) <= 0.5


def test_variables_block_choose_and_trace(plugin_site: Path) -> None:
    answer, trace = run_listing(
        plugin_site,
        JANUS_PLUGINS_ONLY="Janus_Test.good,janus-test-twin-a:main",
        JANUS_PLUGINS_BLOCK="janus-test-twin-a",
        JANUS_PLUGINS_TRACE="1",
    )
    reports = answer["reports"]
    assert [name for name, report in reports.items() if report["status"] == "ok"] == ["janus-test-good:main"]
    assert "JANUS_PLUGINS_BLOCK" in reports["janus-test-twin-a:main"]["error"]
    assert "JANUS_PLUGINS_ONLY" in reports["janus-test-broken:main"]["error"]
    assert "loading janus-test-good:main (janus_test_good)" in trace
    assert "loaded janus-test-good:main in 0." in trace
    assert "janus-test-broken" not in trace


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def f(:\n", "SyntaxError: "),
        ("import janus_no_such_thing\n", "ModuleNotFoundError: "),
        ("raise RuntimeError('boom')\n", "RuntimeError: boom"),
        ("raise SystemExit(0)\n", "SystemExit: 0"),
        ("assert not 'checked'\n", "AssertionError"),
        ("from janus_plugins import nothing_of_the_kind\n", "ImportError: "),
        ("import janus_plugins\njanus_plugins.nothing\n", "AttributeError: "),
        ("def f(): f()\nf()\n", "RecursionError: "),
        ("raise GeneratorExit\n", "GeneratorExit"),
    ],
)
def test_whatever_an_import_raises_stays_with_its_plugin(load: Any, source: str, said: str) -> None:
    good = GOOD + "@hookimpl\ndef janus_components(): return [spec('fine')]\n"
    reports = load(a_first=good, b_bad=source, c_last=good)
    assert [report.status for report in reports.values()] == ["ok", "failed", "ok"]
    assert reports["b_bad"].error.startswith(said)
    assert type(reports["b_bad"].exception).__name__ == said.partition(":")[0]


def test_an_interrupt_is_not_swallowed(load: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        load(impatient="raise KeyboardInterrupt\n")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("None", "returned None; return a list of ComponentSpec"),
        ("'mlp'", "returned 'mlp'; return a list"),
        ("{'mlp': spec('mlp')}", "return a list of ComponentSpec"),
        ("spec('mlp')", "return a list of ComponentSpec"),
        ("[spec('one'), 'two']", "returned 'two', which is not a ComponentSpec"),
        ("[spec('Bad_Name')]", "component head/Bad_Name: name 'Bad_Name' must be lower-case"),
        ("[spec('one'), spec('one')]", "head/one is already offered by the same plugin"),
        ("[spec('old', contract=0)]", "wrong contract version: head/old of"),
        ("7", "TypeError: "),
    ],
)
def test_a_hook_must_return_specs(load: Any, answer: str, said: str) -> None:
    report = load(answering=f"{GOOD}@hookimpl\ndef janus_components(): return {answer}\n")["answering"]
    assert report.status == "failed"
    assert said in report.error


def test_a_generator_of_specs_will_do(load: Any) -> None:
    report = load(yielding=f"{GOOD}@hookimpl\ndef janus_components():\n    yield spec('one')\n")["yielding"]
    assert [(part.name, part.status) for part in report.components] == [("one", "ok")]


def test_a_hook_without_its_mark_is_named(load: Any) -> None:
    unmarked = "def janus_component(): return []\n"
    reports = load(forgot=unmarked, extra=f"{GOOD}@hookimpl\ndef janus_components(): return []\n{unmarked}")
    said = "janus_component() is not marked with @hookimpl. Did you mean 'janus_components'?"
    assert reports["forgot"].status == "failed"
    assert said in reports["forgot"].error
    assert reports["extra"].status == "ok"
    assert reports["extra"].note == said


def test_a_hook_may_be_implemented_under_another_name_or_be_optional(load: Any) -> None:
    named = "@hookimpl(specname='janus_components')\ndef offer(): return [spec('one')]\n"
    later = "@hookimpl(optionalhook=True)\ndef janus_of_a_later_version(): return 1\n"
    reports = load(
        named=GOOD + named + later,
        wrong=GOOD + named.replace("janus_components", "janus_parts"),
    )
    assert [part.name for part in reports["named"].components] == ["one"]
    assert "offer is marked with @hookimpl, but there is no hook 'janus_parts'" in reports["wrong"].error


def test_a_plugin_may_be_an_object(load: Any) -> None:
    method = "    @hookimpl\n    def janus_components(self): return [spec('one')]\n"
    load(objects=f"{GOOD}class Plugin:\n{method}it = Plugin()\n")
    (report,) = PluginHost(entry_points=[entry_of("objects:it", distribution="objects")]).reports
    assert [(part.name, part.status) for part in report.components] == [("one", "ok")]


def test_wrappers_and_wrong_arguments_are_refused(load: Any) -> None:
    reports = load(
        wrapping=f"{GOOD}@hookimpl(wrapper=True)\ndef janus_components():\n    return (yield)\n",
        greedy=f"{GOOD}@hookimpl\ndef janus_components(everything): return []\n",
    )
    assert "hook wrapper" in reports["wrapping"].error
    assert "everything" in reports["greedy"].error


def test_one_module_under_two_entries_does_not_offer_twice(tmp_path: Path, load: Any) -> None:
    load(shared=f"{GOOD}@hookimpl\ndef janus_components(): return [spec('one')]\n")
    two = [entry_of("shared", "first"), entry_of("shared", "second")]
    reports = PluginHost(entry_points=two).reports
    assert [report.status for report in reports] == ["ok", "failed"]
    assert "already registered" in reports[1].error
    assert "shared is already registered as shared:first" in reports[1].error
    assert reports[1].error.endswith("shared.py); name it in one entry point")


def test_one_module_of_two_distributions_is_told(load: Any) -> None:
    """Python finds one of them: the other's components are not to be had, and why is no matter of pluggy's."""
    load(shared=f"{GOOD}@hookimpl\ndef janus_components(): return [spec('one')]\n")
    two = [entry_of("shared", "main", "acme"), entry_of("shared", "main", "brand")]
    reports = PluginHost(entry_points=two).reports
    assert [report.status for report in reports] == ["ok", "failed"]
    assert "shared is already registered as acme:main" in reports[1].error
    assert "acme and brand both have a 'shared', of which Python finds one" in reports[1].error


def test_two_entries_of_one_distribution_may_not_share_a_component(load: Any) -> None:
    source = f"{GOOD}@hookimpl\ndef janus_components(): return [spec('one')]\n"
    load(module_a=source, module_b=source)
    two = [entry_of("module_a", "a", "acme"), entry_of("module_b", "b", "acme")]
    reports = PluginHost(entry_points=two).reports
    assert [report.status for report in reports] == ["ok", "failed"]
    assert reports[1].error == "head/one is already offered by acme:a; rename one"


@pytest.mark.parametrize(
    ("asks", "told"),
    [
        ("janus-plugins>=99", f"late asks for janus-plugins>=99 ({__version__} is installed); next: install"),
        ("no-such-library==3", "late asks for no-such-library==3 (not installed)"),
        ("janus-plugins>=0.1\nRequires-Dist: no-such-library; extra == 'test'", ""),
        ("?", ""),
    ],
)
def test_a_plugin_that_fails_says_which_of_its_requirements_are_not_met(
    asks: str, told: str, load: Any, tmp_path: Path
) -> None:
    info = tmp_path / "late-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: late\nVersion: 1.0\nRequires-Dist: {asks}\n"
    )
    error = load(late="from janus_plugins import WhatIsToCome")["late"].error
    assert error.startswith("ImportError: cannot import name 'WhatIsToCome'")
    assert told in error
    assert ("asks for" in error) == bool(told)


def test_what_a_plugin_prints_stays_off_stdout(load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    source = (
        "print('hello')\n" + GOOD + "@hookimpl\ndef janus_components():\n    print('again')\n    return []\n"
    )
    assert load(chatty=source)["chatty"].status == "ok"
    assert capsys.readouterr() == ("", "hello\nagain\n")


@pytest.mark.parametrize("first", ["import torch", "pass"])
def test_settings_that_a_plugin_changes_are_put_back(first: str, tmp_path: Path) -> None:
    """Also those of a torch that the plugin was the first to import."""
    (tmp_path / "setting.py").write_text(
        GOOD
        + "import os, signal, torch\ntorch.set_default_dtype(torch.float64); torch.set_grad_enabled(False)\n"
        "torch.set_default_device('meta')\n"
        "os.chdir('/'); signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "@hookimpl\ndef janus_components(): return [spec('one')]\n"
    )
    code = f"""{first}
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background has it ignored
from importlib.metadata import EntryPoint
from janus_plugins.core.owner import Owner
from janus_plugins.core.plugins import InstalledEntry, PluginHost
entry = InstalledEntry(Owner("setting", "1"), EntryPoint("main", "setting", "janus_plugins"))
report, = PluginHost(entry_points=[entry]).reports
import torch
print(report.status, torch.get_default_dtype(), torch.empty(()).device, torch.is_grad_enabled(), os.getcwd())
print(signal.getsignal(signal.SIGINT) is signal.default_int_handler, report.note)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    put_back = (
        "torch's default dtype, torch's default device, torch's recording of gradients, the working directory, "
        "the handling of SIGINT"
    )
    assert done.stdout.splitlines()[0] == f"ok torch.float32 cpu True {tmp_path}"
    assert done.stdout.splitlines()[1].startswith("True ")
    assert f"changes {put_back} when it is loaded (put back)" in done.stdout


def test_loading_happens_once(load: Any, tmp_path: Path) -> None:
    count = tmp_path / "count"
    count.write_text("")
    (tmp_path / "counting.py").write_text(
        f"import pathlib\ncount = pathlib.Path({str(count)!r})\ncount.write_text(count.read_text() + 'x')\n"
        f"{GOOD}@hookimpl\ndef janus_components(): return []\n"
    )
    importlib.invalidate_caches()
    once = PluginHost(entry_points=[entry_of("counting")])
    assert once.plugins is once.plugins
    sys.modules.pop("counting")
    assert once.reports[0].status == "ok"
    assert count.read_text() == "x"


def test_a_plugin_that_asks_for_plugins_at_import_is_refused(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "curious.py").write_text("import janus_plugins\njanus_plugins.plugins()\n")
    curious = PluginHost(entry_points=[entry_of("curious")])
    monkeypatch.setattr("janus_plugins.core.plugins.host", lambda: curious)
    assert "while it is being loaded" in curious.reports[0].error


def distribution_at(folder: Path, version: str, entry_points: str) -> None:
    """Lay out an installed distribution called Acme_Parts by hand."""
    info = folder / f"acme_parts-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: Acme_Parts\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(entry_points)


@pytest.fixture
def acme(monkeypatch: pytest.MonkeyPatch):
    """Report on Acme_Parts with some folders first on the path."""

    def reports(*folders: Path) -> list[PluginReport]:
        monkeypatch.setattr(sys, "path", [*map(str, folders), *sys.path])
        importlib.invalidate_caches()
        found = PluginHost([PluginList("allow", ("acme-parts",), "the test")]).reports
        return [report for report in found if report.distribution == "acme-parts"]

    return reports


def test_of_a_distribution_found_twice_the_first_on_the_path_counts(tmp_path: Path, acme: Any) -> None:
    for version in ("1.0", "2.0"):
        distribution_at(tmp_path / version, version, "[janus_plugins]\nmain = acme_no_module\n")
    (report,) = acme(tmp_path / "2.0", tmp_path / "1.0")
    assert (report.version, report.status) == ("2.0", "failed")


def test_a_shadowed_distribution_offers_nothing(tmp_path: Path, acme: Any) -> None:
    distribution_at(tmp_path / "new", "2.0", "[console_scripts]\nacme = acme:main\n")
    distribution_at(tmp_path / "old", "1.0", "[janus_plugins]\nmain = acme_no_module\n")
    assert acme(tmp_path / "new", tmp_path / "old") == []


def test_unreadable_entry_points_are_reported(tmp_path: Path, acme: Any) -> None:
    distribution_at(tmp_path, "1.0", "[janus_plugins]\nthis line has no equals sign\n")
    (report,) = acme(tmp_path)
    assert (report.status, report.entry) == ("failed", "entry_points.txt")
    assert isinstance(report.exception, PluginError)


@pytest.mark.parametrize("metadata", [None, b"", b"Metadata-Version: 2.1\n", b"\xff\xfe"])
def test_an_installation_that_was_broken_off_is_called_by_its_folder(
    tmp_path: Path, acme: Any, metadata: bytes | None
) -> None:
    """It must not take the others down."""
    distribution_at(tmp_path, "1.0", "[janus_plugins]\nmain = acme_no_module\n")
    written = tmp_path / "acme_parts-1.0.dist-info" / "METADATA"
    written.unlink() if metadata is None else written.write_bytes(metadata)
    (report,) = acme(tmp_path)
    assert (report.version, report.status) == ("1.0", "failed")
    assert "acme_no_module" in report.error


def test_metadata_of_another_name_than_the_folder_count(tmp_path: Path, acme: Any) -> None:
    distribution_at(tmp_path, "1.0", "[janus_plugins]\nmain = acme_no_module\n")
    (tmp_path / "acme_parts-1.0.dist-info").rename(tmp_path / "other-1.0.dist-info")
    (report,) = acme(tmp_path)
    assert "acme_no_module" in report.error


@pytest.mark.parametrize(("group", "number"), [("janus_plugins", 1), ("others", 0)])
def test_entry_points_that_are_no_text_are_reported_where_they_are_ours(
    tmp_path: Path, acme: Any, group: str, number: int
) -> None:
    distribution_at(tmp_path, "1.0", "")
    written = tmp_path / "acme_parts-1.0.dist-info" / "entry_points.txt"
    written.write_bytes(f"[{group}]\nmain = a\n".encode() + b"\xff")
    reports = acme(tmp_path)
    assert len(reports) == number
    assert all("cannot be parsed" in report.error for report in reports)


def test_the_process_has_one_host(monkeypatch: pytest.MonkeyPatch) -> None:
    host.cache_clear()
    assert host() is host()
    assert {report.name: report.status for report in plugins()}["janus-plugins:builtin"] == "ok"
    monkeypatch.setenv("JANUS_PLUGINS_BLOCK", "janus-plugins")
    assert plugins()[0].status == "ok", "a running process keeps its host"
    host.cache_clear()
    assert {report.name: report.status for report in plugins()}["janus-plugins:builtin"] == "blocked"
    host.cache_clear()
