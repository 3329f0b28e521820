"""The wheel holds what an installed package needs: configs, templates, the entry point."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import janus_plugins

ROOT = Path(__file__).parents[1]


def test_an_installed_wheel_finds_the_shipped_runs(tmp_path):
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    subprocess.run([*pip, "--target", str(tmp_path / "site"), str(ROOT)], check=True)
    assert (tmp_path / "site" / "janus_plugins" / "configs" / "janus_1.3b.yaml").is_file()
    assert (tmp_path / "site" / "janus_plugins" / "py.typed").is_file()
    code = (
        "import janus_plugins; from janus_plugins.door import plan; "
        "print(janus_plugins.__file__); print(plan('digits').run.name, plan('janus_pro_7b').run.name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        check=True,
    )
    where, names = done.stdout.split("\n")[:2]
    assert where.startswith(str(tmp_path))
    assert names == "digits janus_pro_7b"


PLUGIN = """
import janus_plugins as jp


class EyesConfig(jp.ComponentConfig):
    width: int = 8

    def facts(self) -> jp.UnderstandingFacts:
        return jp.UnderstandingFacts(modality="image", width=self.width, tokens=4, max_tokens=4)


@jp.hookimpl
def janus_components() -> list[jp.ComponentSpec]:
    return []


reveal_type(jp.load("model"))
jp.laod("model")
"""


@pytest.mark.slow
def test_a_program_that_uses_the_package_can_be_checked(tmp_path):
    (tmp_path / "eyes.py").write_text(PLUGIN)
    options = [
        "--strict",
        "--follow-imports",
        "silent",
        "--cache-dir",
        str(ROOT / ".mypy_cache" / "programs"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "eyes.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MYPYPATH": ""},
    )
    revealed, *errors, summary = done.stdout.splitlines()
    assert 'Revealed type is "janus_plugins.model.unified.UnifiedModel"' in revealed
    assert [line.partition("error: ")[2] for line in errors] == [
        'Module has no attribute "laod"  [attr-defined]'
    ]
    assert summary.startswith("Found 1 error")


def test_a_checker_of_types_is_told_every_public_name():
    tree = ast.parse((ROOT / "janus_plugins" / "__init__.py").read_text())
    (told,) = [
        node for node in tree.body if isinstance(node, ast.If) and isinstance(node.body[0], ast.ImportFrom)
    ]
    names = {name.asname: node.module for node in told.body for name in node.names}
    assert names == janus_plugins._DOORS
