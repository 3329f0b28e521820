"""The packages under examples/: small, installed from source, listed, checked, used from their run files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hatchling.builders.wheel import WheelBuilder

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.parent.name for path in EXAMPLES.glob("*/pyproject.toml"))
PROOFS = {"janus-eeg": ("brainwaves.yaml", "description"), "janus-shapes": ("shapes.yaml", "shape")}
"""Sources that train a shipped encoder of a new modality, each with its run file and what that evaluates."""

USED = """
import json, sys
import janus_plugins as jp
from janus_plugins.core.catalogue import catalogue
from janus_plugins.door import plan
from janus_plugins.inference.session import save_generated
from janus_plugins.testing import check_component

examples, out = sys.argv[1:]
names = ("janus-melody", "janus-motion", "janus-reports")
mine = [entry for entry in catalogue().entries() if entry.owner.distribution in names]
reports = [check_component(entry.spec) for entry in mine]
plan(f"{examples}/janus-motion/motion.yaml")
model = jp.compose(f"{examples}/janus-melody/melody.yaml")
made = model.generate(["a rising low c major scale"], modality="melody", num_per_prompt=2, guidance=1.0)
paths = save_generated(model, made, out)
again = model.encode("melody", [one.artefact for one in made]).tolist()
print(json.dumps({
    "checked": [report.name for report in reports if report.ok],
    "plugins": {report.distribution: report.status + report.note for report in jp.plugins()},
    "codes": [one.codes.tolist() for one in made],
    "again": again,
    "files": [str(path) for path in paths],
}))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install every example from its wheel into one folder, offline."""
    wheels, site = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("site")
    for name in NAMES:
        list(WheelBuilder(str(EXAMPLES / name)).build(directory=str(wheels), versions=["standard"]))
    pip = ["-m", "pip", "install", "--no-deps", "--no-index", "--no-compile", "--quiet"]
    options = ["--disable-pip-version-check", "--target", str(site)]
    run(*pip, *options, *map(str, sorted(wheels.glob("*.whl"))))
    return site


def run(*words: str, site: Path | None = None, at: Path | None = None) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(site or "")}
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env=environment, cwd=at, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def lines(name: str, *folders: str) -> int:
    files = [path for folder in folders for path in (EXAMPLES / name / folder).rglob("*.py")]
    assert files
    return sum(len(path.read_text().splitlines()) for path in files)


def test_there_is_an_encoder_an_input_and_an_output_modality() -> None:
    assert {"janus-dinov2", "janus-melody", "janus-motion", "janus-reports"} <= set(NAMES)


def test_the_proofs_hold_their_measured_results() -> None:
    """A run file's table of results: one row a seed, each at least 95 % on held-out items."""
    for name in PROOFS:
        rows = re.findall(r"^\| (\d+) \| ([\d.]+) % \|", (EXAMPLES / name / "README.md").read_text(), re.M)
        assert len(rows) >= 3
        assert all(float(share) >= 95 for _, share in rows)


def test_an_image_encoder_takes_at_most_40_lines() -> None:
    assert lines("janus-dinov2", "janus_dinov2") <= 40


def test_a_new_modality_takes_at_most_120_lines_with_its_test() -> None:
    assert lines("janus-motion", "janus_motion", "tests") <= 120


def test_a_task_and_a_callback_take_less_than_90_lines() -> None:
    assert lines("janus-reports", "janus_reports") < 90


def test_installed_listed_checked_and_used(site: Path, tmp_path: Path) -> None:
    seen = json.loads(run("-c", USED, str(EXAMPLES), str(tmp_path), site=site).splitlines()[-1])
    assert set(seen["checked"]) == {"melody", "motions", "scales", "motion", "confusion", "loss-file"}
    assert {name: seen["plugins"][name] for name in NAMES} == dict.fromkeys(NAMES, "ok")
    assert seen["again"] == seen["codes"]
    files = [Path(path) for path in seen["files"]]
    assert [path.suffix for path in files] == [".mid", ".mid"]
    assert all(b"prompt: a rising low c major scale" in path.read_bytes() for path in files)


PUBLISHED = """
import sys, torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import Dinov2Config, Dinov2Model
from janus_dinov2.model import Dino
from janus_dinov2.spec import DinoConfig
from janus_plugins.core.errors import CheckpointError

folder = sys.argv[1]
config = Dinov2Config(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=1, image_size=518, patch_size=14
)
published = Dinov2Model(config).eval()
published.save_pretrained(folder)
with safe_open(folder + "/model.safetensors", "pt") as file:
    assert "encoder.layer.0.attention.attention.query.weight" in file.keys()
made = [DinoConfig(image_size=28, width=64, depth=depth) for depth in (2, 1)]
encoder, shallow = (Dino(config, config.facts()).eval() for config in made)
encoder.load_weights(folder)
pixels = torch.randn(2, 3, 28, 28)
assert torch.equal(encoder({"pixels": pixels}), published(pixels).last_hidden_state[:, 1:])
try:
    shallow.load_weights(folder)
except CheckpointError as error:
    print(error)
tensors = load_file(folder + "/model.safetensors")
del tensors["encoder.layer.0.attention.attention.query.weight"]
save_file(tensors, folder + "/model.safetensors", {"format": "pt"})
try:
    encoder.load_weights(folder)
except CheckpointError as error:
    print(error)
"""


def test_an_encoder_reads_weights_by_the_names_that_published_files_have(site: Path, tmp_path: Path) -> None:
    deeper, lacking = run("-c", PUBLISHED, str(tmp_path), site=site).splitlines()[-2:]
    assert "18 unexpected" in deeper
    assert "1 missing" in lacking


STEPS = """
import io, json, sys
from pathlib import Path
from rich.console import Console
from janus_plugins.door import load, plan
from janus_plugins.training.run import train

out, *files = sys.argv[1:]
few = [f"stages.{stage}.{key}={number}" for stage in range(3) for key, number in (("steps", 2), ("batch", 4))]
for file in files:
    run = plan(file, [*few, "engine.workers=0", "evaluation={}"])
    done = train(run, Path(out) / run.run.name, console=Console(file=io.StringIO()))
    test = next(data for name, data in run.data.items() if name.endswith("_test"))
    from janus_plugins.data.sources import open_source
    item = open_source(test.part)[0].turns[0].parts[0]
    said = load(done.model).ask("what is this?", items={item.modality: [item.value]}, max_new_tokens=2)
    print(json.dumps({"steps": done.steps, "stages": list(done.seconds), "said": said}))
"""


@pytest.mark.slow
def test_the_proofs_take_a_few_steps_of_each_stage_and_answer(site: Path, tmp_path: Path) -> None:
    files = [str(EXAMPLES / name / file) for name, (file, _) in PROOFS.items()]
    lines = run("-c", STEPS, str(tmp_path), *files, site=site).splitlines()
    answers = [json.loads(line) for line in lines if line.startswith("{")]
    assert len(answers) == len(PROOFS)
    for one in answers:
        assert one["steps"] == 6
        assert one["stages"] == ["adapters", "unified", "finetune"]
        assert isinstance(one["said"], str)


@pytest.mark.slow
def test_a_task_and_a_callback_of_a_package_serve_a_run(site: Path, tmp_path: Path) -> None:
    options = [
        "stages=[{name: short, learn: {language_model: 1e-3}, mix: {understanding: 1}, steps: 3, batch: 4, "
        "max_length: 64}]",
        "callbacks=[{use: loss-file}]",
        "evaluation={table: {task: confusion, source: read_test, options: {limit: 8, max_new_tokens: 2}}}",
        "engine.workers=0",
    ]
    sets = [word for override in options for word in ("--set", override)]
    run("-m", "janus_plugins", "train", "digits", "--out", str(tmp_path), *sets, site=site)
    result = json.loads((tmp_path / "evaluation.json").read_text())["details"]["table"]
    assert sum(sum(replies.values()) for replies in result["said"].values()) == 8
    header, *rows = (tmp_path / "losses.csv").read_text().splitlines()
    assert header == "stage,step,loss,value"
    assert {int(row.split(",")[1]) for row in rows} == {1, 2, 3}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", PROOFS)
def test_a_shipped_encoder_of_a_new_modality_trains(name: str, site: Path, tmp_path: Path) -> None:
    file, measured = PROOFS[name]
    run("-m", "janus_plugins", "train", str(EXAMPLES / name / file), "--out", str(tmp_path), site=site)
    assert json.loads((tmp_path / "evaluation.json").read_text())[measured] >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_its_own_tests_pass_before_it_is_installed(name: str) -> None:
    run("-m", "pytest", "-q", "-p", "no:cacheprovider", at=EXAMPLES / name)


@pytest.mark.slow
def test_pip_installs_it_from_source_offline(tmp_path: Path) -> None:
    pip = ["-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--target"]
    run(*pip, str(tmp_path), *(str(EXAMPLES / name) for name in NAMES))
    checked = run("-m", "janus_plugins", "check", "janus-motion/", site=tmp_path)
    assert "understanding_encoder/motion" in checked


@pytest.mark.slow
def test_the_new_input_modality_trains(site: Path, tmp_path: Path) -> None:
    run(
        "-m", "janus_plugins", "train", str(EXAMPLES / "janus-motion/motion.yaml"), "--out", str(tmp_path),
        site=site,
    )  # fmt: skip
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert result["activity"] >= 0.95
    seconds = np.arange(100) / 50
    np.save(tmp_path / "walk.npy", 0.5 * np.sin(4 * np.pi * seconds)[:, None] + [0.0, 0.0, 1.0])
    question = ["--question", "What is the wearer doing?", "--input", f"motion={tmp_path / 'walk.npy'}"]
    assert run("-m", "janus_plugins", "ask", str(tmp_path), *question, site=site).strip() == "walking"
