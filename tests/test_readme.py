"""The README's plugin and run files work as they stand there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from janus_plugins.cli import app

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def block(section: str, language: str, number: int = 0) -> str:
    text = README.read_text(encoding="utf-8")
    part = text.split(f"## {section}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", part, flags=re.DOTALL)[number]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the README's plugin into a folder of its own."""
    source = tmp_path_factory.mktemp("my-patches")
    (source / "pyproject.toml").write_text(block("Register your own", "toml"))
    (source / "my_patches").mkdir()
    (source / "my_patches" / "__init__.py").touch()
    (source / "my_patches" / "spec.py").write_text(block("Register your own", "python", 0))
    (source / "my_patches" / "model.py").write_text(block("Register your own", "python", 1))
    target = tmp_path_factory.mktemp("site")
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
    subprocess.run([*pip, "--target", str(target), str(source)], check=True)
    return target


def run(site: Path, *words: object) -> str:
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "janus_plugins", *map(str, words)],
        capture_output=True, text=True, env=environment, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_plugin_is_listed_validated_and_trained(site, tmp_path):
    assert "my-patches" in run(site, "plugins")
    path = tmp_path / "my.yaml"
    path.write_text(block("Register your own", "yaml"))
    run(site, "validate", path)
    quick = ["tokenizer", "adapters", "unified", "finetune"]
    steps = [
        word
        for name in quick
        for word in ("--set", f"stages.{name}.steps=1", "--set", f"stages.{name}.batch=4")
    ]
    run(site, "train", path, "--out", tmp_path / "run", "--no-evaluate", *steps)
    said = run(site, "ask", tmp_path / "run", "--question", "Put in order: two one", "--max-new-tokens", 2)
    assert said.endswith("\n")


def test_the_composition_validates(tmp_path):
    text = block("Compose your own", "yaml").replace("configs/digits.yaml", "digits")
    (tmp_path / "my.yaml").write_text(text)
    for verb in ("validate", "explain"):
        done = CliRunner().invoke(app, [verb, str(tmp_path / "my.yaml")])
        assert done.exit_code == 0, done.output


def test_every_verb_in_the_readme_exists():
    text = README.read_text(encoding="utf-8")
    verbs = set(
        re.findall(r"^(?:\.venv/bin/)?janus-plugins (\w+)|`janus-plugins (\w+)", text, flags=re.MULTILINE)
    )
    verbs = {one or other for one, other in verbs}
    assert {"train", "validate", "generate", "ask"} <= verbs
    helped = subprocess.run(
        [sys.executable, "-m", "janus_plugins", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for verb in verbs:
        assert f"│ {verb} " in helped, verb


def launched() -> list[str]:
    """Return the commands with torchrun of the README and the docs."""
    blocks = [
        block
        for path in (README, *sorted((ROOT / "docs").rglob("*.md")))
        for block in re.findall(
            r"^ *```\w*\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
        )
    ]
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", "").splitlines()]
    return [line for line in lines if line.startswith("torchrun ")]


def test_torchrun_reads_the_commands_that_are_shown() -> None:
    from torch.distributed.run import get_args_parser

    assert len(launched()) >= 5
    for line in launched():
        known = get_args_parser().parse_args(shlex.split(line, comments=True)[1:])
        assert known.training_script == "janus_plugins"
        assert "janus_plugins" not in known.training_script_args
