"""Training starts from published folders as they are: the official layout and transformers'."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor
from typer.testing import CliRunner

import janus_plugins as jp
from janus_plugins.cli import app
from janus_plugins.core.errors import CheckpointError, DataError, RunFileError
from janus_plugins.model.unified import UnifiedModel

DATA = """
read: {use: digits, task: understanding, options: {ask: understanding, size: 16}}
draw: {use: digits, task: generation, options: {ask: generation, size: 16}}
"""
STAGES = """
- name: adapters
  learn: {understanding.image.adapter: 1.0e-3, generation.image.head: 1.0e-3}
  mix: {understanding: 1, generation: 1}
  steps: 1
  batch: 2
  max_length: 250
"""
LEARNT = ("understanding.image.adapter.", "generation.image.head.")


@pytest.fixture(scope="module")
def run_file(model: UnifiedModel, exact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the published model's parts, with the tokenizer of its folder."""
    folder = tmp_path_factory.mktemp("run")
    block = model.plan.run.model.model_dump(mode="json", exclude_unset=True)
    block["language_model"]["tokenizer"] = {"type": "pretrained", "path": str(exact / "tokenizer.json")}
    run = {"name": "more", "seed": 5, "model": block, "data": yaml.safe_load(DATA)}
    path = folder / "more.yaml"
    path.write_text(yaml.safe_dump({**run, "stages": yaml.safe_load(STAGES)}))
    return path


def trained(run_file: Path, source: Path, out: Path, *more: str) -> dict[str, Tensor]:
    words = ["train", str(run_file), *more, "--from", str(source), "--out", str(out)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    return dict(jp.load(out / "model").named_parameters())


def test_train_from_published_folders(run_file, exact, converted, model, tmp_path):
    """What a stage leaves alone has the folder's weights, the rest moved; both layouts end alike."""
    official = trained(run_file, exact, tmp_path / "official")
    transformers = trained(run_file, converted, tmp_path / "transformers")
    given = dict(model.named_parameters())
    assert given.keys() == official.keys() == transformers.keys()
    moved = {name for name, value in given.items() if not torch.equal(official[name], value)}
    assert moved == {name for name in given if name.startswith(LEARNT)}
    assert all(torch.equal(official[name], transformers[name]) for name in given)


def test_a_published_folder_of_another_size_is_refused(run_file, exact, tmp_path):
    wider = ["--set", "model.language_model.options.intermediate_size=96"]
    words = ["train", str(run_file), *wider, "--from", str(exact), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, CheckpointError)
    assert "is (64, 48), but the run's model has (96, 48)" in str(done.exception)


@pytest.mark.parametrize("layout", ["official", pytest.param("transformers", marks=pytest.mark.slow)])
def test_answers_of_a_published_folder(run_file, exact, converted, layout, tmp_path):
    """Written once from the folder, they are those that training from it would compute, and of no other one."""
    source, answers = exact if layout == "official" else converted, tmp_path / "answers"
    words = ["precompute", str(run_file), "--model", str(source), "--out", str(answers)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    using = [each for name in ("read", "draw") for each in ("--set", f"data.{name}.precomputed={answers}")]
    with_answers = trained(run_file, source, tmp_path / "with", *using)
    without = trained(run_file, source, tmp_path / "without")
    for name, value in without.items():
        torch.testing.assert_close(with_answers[name], value, rtol=1e-4, atol=1e-5)
    words = ["train", str(run_file), *using, "--out", str(tmp_path / "fresh")]
    fresh = CliRunner().invoke(app, words)
    assert isinstance(fresh.exception, DataError)
    assert "is stale: " in str(fresh.exception)


def test_no_answers_of_a_published_folder_with_another_encoder(run_file, exact, tmp_path):
    other = ["--set", "model.understanding.image.encoder.options.num_heads=4"]
    words = ["precompute", str(run_file), *other, "--model", str(exact), "--out", str(tmp_path / "answers")]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, RunFileError)
    assert "has another understanding.image.encoder than the run file" in str(done.exception)
