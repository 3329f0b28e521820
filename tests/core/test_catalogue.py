"""Looking components up: exact answers, and refusals that say what to do."""

from __future__ import annotations

import importlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

from janus_plugins.core.catalogue import Catalogue, CatalogueEntry, catalogue, load_factory, load_processor
from janus_plugins.core.errors import PluginError
from janus_plugins.core.kinds import Kind
from janus_plugins.core.plan import Owner
from janus_plugins.core.plugins import PluginHost, PluginList, host
from janus_plugins.core.specs import CONTRACT_VERSION, ComponentConfig, ComponentSpec

HEAVY = "janus-test-heavy"


def catalogue_of(source: PluginHost) -> Catalogue:
    """Make a catalogue the way `catalogue()` does, of any host."""
    entries = [CatalogueEntry(spec, plugin.owner) for plugin in source.plugins for spec in plugin.specs]
    return Catalogue(entries, source.reports)


def head(name: str = "one", **changes: object) -> ComponentSpec:
    """Make a spec."""
    fields: dict[str, object] = {
        "kind": Kind.HEAD,
        "name": name,
        "config": ComponentConfig,
        "factory": "json:dumps",
        "contract": CONTRACT_VERSION,
    }
    return ComponentSpec(**(fields | changes))  # type: ignore[arg-type]


@pytest.fixture
def found(plugin_site: Path, monkeypatch: pytest.MonkeyPatch) -> Catalogue:
    """The shipped components and those of tests/plugins."""
    monkeypatch.setattr(sys, "path", [str(plugin_site), *sys.path])
    importlib.invalidate_caches()
    return catalogue_of(PluginHost([PluginList("block", (HEAVY,), "the test")]))


def refusal(found: Catalogue, kind: Kind, use: str) -> PluginError:
    """Ask for what cannot be had."""
    with pytest.raises(PluginError) as raised:
        found.get(kind, use)
    assert raised.value.exit_code == 3
    return raised.value


@pytest.mark.parametrize(
    "use",
    ["test-good", "janus-test-good/test-good", "janus_test_good/test-good", "Janus.Test.Good/test-good"],
)
def test_a_component_is_found_by_name(found: Catalogue, use: str) -> None:
    entry = found.get(Kind.ADAPTER, use)
    assert (entry.spec.name, entry.owner) == ("test-good", Owner("janus-test-good", "1.2"))


def test_an_unknown_name_lists_what_there_is_and_what_failed(found: Catalogue) -> None:
    said = str(refusal(found, Kind.ADAPTER, "test-godo"))
    assert "no adapter is called 'test-godo'. Did you mean 'test-good'?" in said
    assert "pixel-shuffle, test-good, test-needy, janus-test-twin-a/test-twin" in said
    assert "plugin janus-test-broken:main failed to load (ModuleNotFoundError" in said
    assert "plugin janus-test-heavy:main is blocked" in said
    assert "`janus-plugins plugins` shows more" in said


def test_a_name_of_another_kind_is_pointed_out(found: Catalogue) -> None:
    assert "('vq' is a generation_encoder.)" in str(refusal(found, Kind.ADAPTER, "vq"))


def test_a_distribution_that_is_not_installed_gets_its_pip_name(found: Catalogue) -> None:
    assert "pip install acme-parts" in str(refusal(found, Kind.ADAPTER, "Acme_Parts/mlp"))
    said = str(refusal(found, Kind.ADAPTER, "acme-parts/enlarge"))
    assert "No plugin from 'acme-parts' is installed; next: pip install acme-parts. plugin " in said


def test_a_distribution_that_is_misspelt_is_not_to_be_installed(found: Catalogue) -> None:
    said = str(refusal(found, Kind.ADAPTER, "janus-plugin/mlp"))
    assert "Did you mean 'janus-plugins/mlp'?" in said
    assert (
        "No plugin from 'janus-plugin' is installed; if that is no misspelling, install it. plugin " in said
    )
    assert "pip install janus-plugin" not in said


@pytest.mark.parametrize(
    ("use", "cause"),
    [
        ("janus-test-broken/anything", ModuleNotFoundError),
        ("janus-test-exits/anything", SystemExit),
        ("janus-test-raising/anything", LookupError),
        ("test-future", PluginError),
    ],
)
def test_asking_a_failed_plugin_raises_its_error(
    found: Catalogue, use: str, cause: type[BaseException]
) -> None:
    error = refusal(found, Kind.ADAPTER, use)
    assert type(error.__cause__) is cause
    assert str(error.__cause__)[:40] in str(error)
    assert "`janus-plugins plugins` shows it" in str(error)


def test_our_own_component_keeps_its_bare_name(found: Catalogue) -> None:
    """Installing a plugin must not break the run files that are there."""
    ours = found.get(Kind.ADAPTER, "mlp")
    theirs = CatalogueEntry(ours.spec, Owner("another", "1"))
    both = Catalogue([theirs, *found.entries()])
    assert both.get(Kind.ADAPTER, "mlp") == ours
    assert both.get(Kind.ADAPTER, "another/mlp") == theirs
    assert {"mlp", "another/mlp"} < set(both.names(Kind.ADAPTER))
    assert both.preferring({("adapter", "mlp"): "another"}).get(Kind.ADAPTER, "mlp") == theirs
    assert both.preferring({("adapter", "mlp"): "gone"}).get(Kind.ADAPTER, "mlp") == ours


@pytest.mark.parametrize(
    ("blocked", "said"),
    [
        ((HEAVY,), "is that of gone, which is not installed"),
        (
            (HEAVY, "janus-test-twin-a"),
            "is that of janus-test-twin-a: plugin janus-test-twin-a:main is blocked",
        ),
    ],
)
@pytest.mark.usefixtures("found")
def test_another_plugins_component_does_not_stand_in_for_the_preferred_one(
    blocked: tuple[str, ...], said: str
) -> None:
    found = catalogue_of(PluginHost([PluginList("block", blocked, "the test")]))
    preferred = "gone" if len(blocked) == 1 else blocked[-1]
    error = refusal(found.preferring({("adapter", "test-twin"): preferred}), Kind.ADAPTER, "test-twin")
    assert said in str(error)
    assert "'janus-test-twin-b/test-twin' has the same name, and may compute something else" in str(error)


def test_two_owners_of_one_name_are_never_chosen_between(found: Catalogue) -> None:
    said = str(refusal(found, Kind.ADAPTER, "test-twin"))
    assert "write 'janus-test-twin-a/test-twin' or 'janus-test-twin-b/test-twin'" in said
    for owner in ("janus-test-twin-a", "janus-test-twin-b"):
        assert found.get(Kind.ADAPTER, f"{owner}/test-twin").owner.distribution == owner
    names = found.names(Kind.ADAPTER)
    assert {"janus-test-twin-a/test-twin", "janus-test-twin-b/test-twin"} < set(names)
    assert "test-twin" not in names


def test_every_listed_name_is_answered(found: Catalogue) -> None:
    for kind in Kind:
        for name in found.names(kind):
            if name != "test-needy":
                assert found.get(kind, name).spec.kind == kind


def test_a_missing_library_is_named_with_the_way_to_install_it(found: Catalogue) -> None:
    error = refusal(found, Kind.ADAPTER, "test-needy")
    assert "needs module 'janus_test_absent_library'" in str(error)
    assert 'pip install "janus-test-needy[library]"' in str(error)
    assert isinstance(error.__cause__, ModuleNotFoundError)


def test_a_library_that_is_found_but_does_not_import_is_named_when_building(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "janus_test_crash.py").write_text("raise RuntimeError('built for another torch')\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    importlib.invalidate_caches()
    spec = head(requires=("janus_test_crash",))
    assert Catalogue([CatalogueEntry(spec, Owner("acme", "1"))]).get(Kind.HEAD, "one").spec is spec
    with pytest.raises(PluginError) as raised:
        load_factory(spec)
    assert "(RuntimeError: built for another torch)" in str(raised.value)
    assert 'pip install "janus_test_crash"' in str(raised.value)
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_the_digest_depends_on_what_is_offered_alone() -> None:
    acme, other = Owner("acme", "1.0"), Owner("other", "1.0")
    one, two = CatalogueEntry(head("one"), acme), CatalogueEntry(head("two"), acme)
    digest = Catalogue([one, two]).digest()
    assert len(digest) == 64
    assert Catalogue([two, one]).digest() == digest
    changed = [
        [one],
        [one, CatalogueEntry(head("two"), other)],
        [one, CatalogueEntry(head("two"), Owner("acme", "1.1"))],
        [one, CatalogueEntry(head("two", kind=Kind.ADAPTER), acme)],
        [one, CatalogueEntry(head("two", contract=CONTRACT_VERSION + 1), acme)],
    ]
    assert len({digest, *(Catalogue(entries).digest() for entries in changed)}) == 6


def test_two_processes_agree_on_the_digest() -> None:
    code = "from janus_plugins.core.catalogue import catalogue; print(catalogue().digest())"
    host.cache_clear()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == catalogue().digest()


def test_the_factory_is_loaded_from_its_import_string(found: Catalogue) -> None:
    build = load_factory(found.get(Kind.ADAPTER, "test-good").spec)
    assert build("config", facts="facts") == ("config", "facts")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("no_such_module_here:build", "ModuleNotFoundError: No module named 'no_such_module_here'"),
        ("json:no_such_name", "AttributeError: module 'json' has no attribute 'no_such_name'"),
        ("janus_test_exits:build", "SystemExit: this plugin ends the program"),
        ("sys:path", "is not callable"),
    ],
)
def test_an_import_string_that_fails_names_component_target_and_cause(
    found: Catalogue, target: str, said: str
) -> None:
    for load, spec in (
        (load_factory, head(factory=target)),
        (load_processor, head(processor=target)),
    ):
        with pytest.raises(PluginError) as raised:
            load(spec)
        assert "head/one" in str(raised.value)
        assert repr(target) in str(raised.value)
        assert said in str(raised.value)


def test_what_importing_a_factory_changes_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A module may seed, or set torch up for itself: the run's seed, and others' weights, stay as they are."""
    (tmp_path / "seeding.py").write_text(
        "import os, random, signal, numpy, torch\n"
        "random.seed(1); numpy.random.seed(1); torch.manual_seed(1)\n"
        "torch.set_default_dtype(torch.float64); torch.set_grad_enabled(False)\n"
        "torch.set_default_device('meta')\n"
        "os.chdir('/'); signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "os.environ['SEEDING_SETS'] = '1'\n"
        "build = dict\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SEEDING_SETS", "0")

    def state() -> list[object]:
        numbers = [random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist()]
        settings = [torch.get_default_dtype(), torch.is_grad_enabled(), signal.getsignal(signal.SIGTERM)]
        return [*numbers, *settings, torch.empty(()).device, Path.cwd()]

    before = state()
    assert load_factory(head(factory="seeding:build")) is dict
    assert state() == before
    assert os.environ["SEEDING_SETS"] == "1"  # what a library sets for itself
    assert [record.getMessage() for record in caplog.records] == [
        "head/one: importing seeding changes random's state, numpy's random state, torch's random state, "
        "torch's default dtype, torch's default device, torch's recording of gradients, the working directory, the "
        "handling of SIGTERM "
        "(put back)"
    ]


def test_a_processor_that_is_not_declared_is_an_error() -> None:
    with pytest.raises(PluginError, match="head/one declares no processor"):
        load_processor(head())
