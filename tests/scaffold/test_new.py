"""`janus-plugins new` for every kind: its test passes at once, its wheel installs and is listed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from hatchling.builders.wheel import WheelBuilder
from typer.testing import CliRunner

from janus_plugins.cli import app
from janus_plugins.core.errors import RunFileError
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import CONTRACT_VERSION
from janus_plugins.scaffold.write import SERIES_SUMMARIES, write_package

SERIES = [(kind, "heart_rate") for kind in SERIES_SUMMARIES]
KINDS = pytest.mark.parametrize(("kind", "modality"), [*((kind, "image") for kind in Kind), *SERIES], ids=str)


def write(kind: Kind, modality: str, out: Path) -> Path:
    return write_package(f"tried-{kind.replace('_', '-')}", str(kind), out, modality)


def wheel_of(folder: Path, out: Path) -> Path:
    return Path(next(WheelBuilder(str(folder)).build(directory=str(out), versions=["standard"])))


def run(*command: str, at: Path, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(site or "")}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=at, env=environment, capture_output=True, text=True
    )


@KINDS
def test_its_test_passes_at_once(
    kind: Kind, modality: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(kind, modality, tmp_path)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.syspath_prepend(str(folder / "tests"))
    before = set(sys.modules)
    try:
        import_module("test_contract").test_contract()
    finally:
        for name in set(sys.modules) - before:
            if name == "test_contract" or name.startswith("tried_"):
                del sys.modules[name]


@KINDS
def test_it_is_a_wheel_with_one_entry_point(kind: Kind, modality: str, tmp_path: Path) -> None:
    folder = write(kind, modality, tmp_path)
    with zipfile.ZipFile(wheel_of(folder, tmp_path)) as wheel:
        names = wheel.namelist()
        entries = next(name for name in names if name.endswith("entry_points.txt"))
        package = folder.name.replace("-", "_")
        assert f"[janus_plugins]\n{folder.name} = {package}.spec" in wheel.read(entries).decode()
    assert {f"{package}/{name}.py" for name in ("__init__", "spec", "model")} <= set(names)


@KINDS
def test_nothing_is_left_to_fill_in(kind: Kind, modality: str, tmp_path: Path) -> None:
    folder = write(kind, modality, tmp_path)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) == (8 if modality == "image" else 10)
    for path in files:
        text = path.read_text()
        assert "$" not in text.replace("${{ matrix.python }}", ""), path
        assert text.endswith("\n")
    yaml.safe_load((folder / ".github/workflows/test.yml").read_text())
    tomllib.loads((folder / "pyproject.toml").read_text())
    usage = (folder / "README.md").read_text().split("```yaml\n")[1].split("```")[0]
    assert folder.name in json.dumps(yaml.safe_load(usage))


@KINDS
def test_its_contract_is_a_number(kind: Kind, modality: str, tmp_path: Path) -> None:
    """A later version of janus-plugins must see what the package was written against."""
    text = (write(kind, modality, tmp_path) / f"tried_{kind}" / "spec.py").read_text()
    assert f"    contract={CONTRACT_VERSION},\n" in text
    assert "CONTRACT_VERSION" not in text


@KINDS
def test_it_is_clean_code(kind: Kind, modality: str, tmp_path: Path) -> None:
    folder = write(kind, modality, tmp_path)
    rules = ["--select", "E,F,W,I,B,UP,D", "--ignore", "D203,D213,D107,D413", "--line-length", "110"]
    checked = run("ruff", "check", "--isolated", *rules, ".", at=folder)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.slow
@KINDS
def test_installed_tested_and_checked_as_its_readme_says(kind: Kind, modality: str, tmp_path: Path) -> None:
    folder, site = write(kind, modality, tmp_path), tmp_path / "site"
    tested = run("pytest", "-q", at=folder)
    assert tested.returncode == 0, tested.stdout
    pip = ("pip", "install", "--no-deps", "--no-index", "--no-compile", "--target", str(site))
    assert run(*pip, str(wheel_of(folder, tmp_path)), at=tmp_path).returncode == 0
    listed = run("janus_plugins", "plugins", "--json", at=tmp_path, site=site)
    assert folder.name in listed.stdout
    checked = run("janus_plugins", "check", folder.name, at=tmp_path, site=site)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{kind}/{folder.name}" in checked.stdout


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("My Encoder", "adapter", "lower-case words"),
        ("3d", "adapter", "beginning with a letter"),
        ("torch", "adapter", "installed already"),
        ("json", "adapter", "installed already"),
        ("siglip", "understanding_encoder", "janus-plugins offers an understanding_encoder 'siglip' already"),
        ("mine", "adaptor", "Did you mean 'adapter'"),
    ],
)
def test_what_cannot_be_written_is_refused(name: str, kind: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match=said):
        write_package(name, kind, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "modality", "said"),
    [
        ("head", "lidar", "a head has no modality of its own; --modality is for understanding_encoder"),
        ("adapter", "lidar", "an adapter has no modality of its own"),
        ("understanding_encoder", "Heart Rate", "cannot name a modality"),
        ("understanding_encoder", "3d", "cannot name a modality"),
        ("generation_encoder", "text", "cannot name a modality"),
        ("understanding_encoder", "a.b", "cannot name a modality"),
    ],
)
def test_a_modality_that_cannot_be_is_refused(kind: str, modality: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match=said):
        write_package("mine", kind, tmp_path, modality)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_never_overwritten(tmp_path: Path) -> None:
    write_package("mine", "adapter", tmp_path)
    with pytest.raises(RunFileError, match="exists already"):
        write_package("mine", "head", tmp_path)


def test_a_package_is_whole_or_not_there(tmp_path: Path) -> None:
    """The same command again then writes it."""
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from janus_plugins.scaffold.write import write_package\n"
        "killing = lambda event, args: event == 'open' and str(args[0]).endswith('model.py')\n"
        "sys.addaudithook(lambda *seen: killing(*seen) and os.kill(os.getpid(), signal.SIGKILL))\n"
        "write_package('mine', 'adapter', Path(sys.argv[1]))\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    assert not (tmp_path / "mine").exists()
    write_package("mine", "adapter", tmp_path)
    assert (tmp_path / "mine" / "tests" / "test_contract.py").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_folder_that_takes_no_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFileError, match="mine cannot be written: Not a directory; choose another"):
        write_package("mine", "adapter", tmp_path / "file")
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    with pytest.raises(RunFileError, match="is where this program runs"):
        write_package("mine", "adapter", Path(".."))
    monkeypatch.chdir(tmp_path)
    assert write_package("mine", "adapter", Path()).is_dir()  # empty until then


def test_the_command_says_what_comes_next(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["new", "my_head", "--kind", "head", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "my-head" / "my_head" / "spec.py").is_file()
    assert "janus-plugins check my-head" in done.output
