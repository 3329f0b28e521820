"""The host with none of the optional extras: components say what they need, and the rest works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from janus_plugins.core.catalogue import catalogue

ROOT = Path(__file__).parents[2]
MODULES = {
    "demo": ("sklearn",),
    "lora": ("peft",),
    "audio": ("soundfile", "scipy"),
    "points": ("trimesh",),
    "eeg": ("mne", "scipy"),
    "diffusers": ("diffusers",),
    "movqgan": ("diffusers",),
}
"""What each extra's packages are imported as."""

BLOCKER = """
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec.__func__

def find_others(cls, name, path=None, target=None):
    hidden = name.partition(".")[0] in {modules!r}
    return None if hidden else find_spec(cls, name, path, target)

PathFinder.find_spec = classmethod(find_others)
"""
"""Hides modules as if they were not installed: finding one answers None, importing it raises."""


def extras() -> dict[str, list[str]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {name: needs for name, needs in project["optional-dependencies"].items() if name != "dev"}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which no module of an extra can be imported."""
    folder = tmp_path_factory.mktemp("bare")
    blocked = sorted({module for modules in MODULES.values() for module in modules})
    (folder / "sitecustomize.py").write_text(BLOCKER.format(modules=blocked))
    paths = os.pathsep.join([str(folder), *filter(None, sys.path)])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


def run(bare: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], env=bare, capture_output=True, text=True)


def test_every_extra_is_known_here() -> None:
    assert set(extras()) == set(MODULES)


def test_extras_that_components_name_exist_and_hold_what_they_require() -> None:
    own = [entry.spec for entry in catalogue().entries() if entry.owner.distribution == "janus-plugins"]
    optional = {module for modules in MODULES.values() for module in modules}
    for spec in own:
        wanted = set(spec.requires) & optional
        if spec.extra:
            name = spec.extra.removeprefix("janus-plugins[").removesuffix("]")
            assert wanted <= set(MODULES[name]), spec.name
        else:
            assert not wanted, f"{spec.name} requires {wanted} and names no extra"


def test_components_are_listed_as_needing_their_extra(bare: dict[str, str]) -> None:
    done = run(bare, "-m", "janus_plugins", "plugins", "--json")
    assert done.returncode == 0, done.stderr
    own = next(each for each in json.loads(done.stdout) if each["distribution"] == "janus-plugins")
    told = {part["name"]: part["status"] for part in own["components"]}
    assert told["eeg"] == "needs janus-plugins[eeg]"
    assert told["classified-generation"] == "needs janus-plugins[demo]"
    assert {told[name] for name in ("llama", "siglip", "vq", "mlp", "sorting", "exact-match")} == {"ok"}
    for entry in catalogue().entries():
        spec, optional = entry.spec, {module for modules in MODULES.values() for module in modules}
        if entry.owner.distribution == "janus-plugins" and set(spec.requires) & optional:
            assert told[spec.name] == f"needs {spec.extra}"


def test_asking_for_one_says_what_to_install_and_ends_with_3(bare: dict[str, str]) -> None:
    done = run(bare, "-m", "janus_plugins", "validate", "digits")
    assert done.returncode == 3
    assert 'pip install "janus-plugins[demo]"' in done.stderr
    assert "digits.yaml:" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_needs_no_extra_works(bare: dict[str, str]) -> None:
    words = ("check", "sorting", "--json")
    done = run(bare, "-m", "janus_plugins", *words)
    assert done.returncode == 0, done.stderr
    (report,) = json.loads(done.stdout)
    assert report["ok"]
    needy = run(bare, "-m", "janus_plugins", "check", "classified-generation")
    assert needy.returncode == 0
    assert "needs janus-plugins[demo]" in needy.stdout
