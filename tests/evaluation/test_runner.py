"""Evaluation entries keep what is theirs by their names, and run where training did."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from janus_plugins import door
from janus_plugins.core.errors import BadSample, CheckpointError, DataError, RunFileError
from janus_plugins.core.samples import Sample, generation_sample
from janus_plugins.evaluation import pictures, runner
from janus_plugins.training import report, run
from tests.tiny import write_tiny

ANSWERS = {
    "one": {"score": 0.9, "ceilings": {"real": 0.98}, "samples": 3},
    "two": {"score": 0.5, "ceilings": {"real": 0.61}},
    "three": {"score": 0.4},
}


def test_ceilings_are_kept_by_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = SimpleNamespace(plan=SimpleNamespace(run=SimpleNamespace(evaluation=ANSWERS)))
    monkeypatch.setattr(runner, "_run_task", lambda model, name: dict(ANSWERS[name]))
    told = runner.evaluate_model(model, seconds={"unified": 3.0})
    assert {name: told[name] for name in ANSWERS} == {"one": 0.9, "two": 0.5, "three": 0.4}
    assert told["ceilings"] == {"one": {"real": 0.98}, "two": {"real": 0.61}}
    assert told["details"] == {"one": {"samples": 3}, "two": {}, "three": {}}
    assert told["seconds_per_stage"] == {"unified": 3.0}
    assert ("ceilings: two: real", 0.61) in report.scores(told)


def test_scores_that_cannot_be_written_leave_the_former(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_file_beyond: Any
) -> None:
    model: Any = SimpleNamespace(plan=SimpleNamespace(run=SimpleNamespace(evaluation=ANSWERS)))
    monkeypatch.setattr(runner, "_run_task", lambda model, name: dict(ANSWERS[name]))
    runner.evaluate_model(model, out=tmp_path)
    before = (tmp_path / "evaluation.json").read_text()
    with no_file_beyond(100), pytest.raises(RunFileError, match="cannot be written: File too large"):
        runner.evaluate_model(model, out=tmp_path)
    assert (tmp_path / "evaluation.json").read_text() == before


def test_pictures_that_cannot_be_written_leave_the_former(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_file_beyond: Any
) -> None:
    made = [SimpleNamespace(artefact=Image.effect_noise((16, 16), 90)) for _ in range(pictures.COLUMNS)]
    model: Any = SimpleNamespace(
        plan=SimpleNamespace(model=SimpleNamespace(generation={"image": None}), evaluation={}),
        generate=lambda *given, **named: made,
    )
    monkeypatch.setattr(pictures, "prompts_of", lambda plan, modality: ("a seven",))
    (path,) = pictures.picture_grids(model, tmp_path).values()
    before = path.read_bytes()
    message = r"samples\.png cannot be written: .*; make room and go on with --resume"
    with no_file_beyond(100), pytest.raises(CheckpointError, match=message):
        pictures.picture_grids(model, tmp_path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["samples.png"]


def test_a_trained_model_is_evaluated_where_it_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple[Path, str]] = []
    trained = SimpleNamespace(is_main=True, seconds={}, device=torch.device("cuda", 1))
    monkeypatch.setattr(run, "train", lambda *given, **named: trained)
    monkeypatch.setattr(door, "load", lambda *given: loaded.append(given))
    monkeypatch.setattr(runner, "evaluate_model", lambda *given, **named: {})
    monkeypatch.setattr(pictures, "picture_grids", lambda *given: {})
    monkeypatch.setattr(pictures, "sampler", lambda plan: None)
    monkeypatch.setattr(report, "write_report", lambda *given: "report.html")
    block = SimpleNamespace(stages=[SimpleNamespace(name="one")], evaluation={"read": None})
    plan: Any = SimpleNamespace(run=block)
    runner.train_and_evaluate(plan, tmp_path, None, resume=False, evaluate=True)
    assert loaded == [(tmp_path / "model", "cuda:1")]


def test_prompts_are_taken_from_the_samples_that_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Damaged:
        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: int) -> Sample:
            if index == 0:
                raise BadSample("prompt is empty")
            return generation_sample({1: "a kite", 3: "a heron"}[index], "image", None, str(index))

    monkeypatch.setattr(pictures, "open_source", lambda part: Damaged())
    assert pictures.prompts_of(door.plan(write_tiny(tmp_path)), "image") == ("a heron", "a kite")


def _task(config: Any, facts: Any) -> Any:
    def run(model: Any, source: Any, others: Any) -> dict[str, Any]:
        with pytest.raises(BadSample, match="answer is empty"):
            others["draw"][2]
        return {"score": len(others["draw"])}

    return run


def test_a_sample_that_cannot_be_scored_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Damaged:
        split = "test"

        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Sample:
            if index == 2:
                raise BadSample("answer is empty")
            return generation_sample("a kite", "image", None, str(index))

    monkeypatch.setattr(runner, "open_source", lambda part: Damaged())
    source: Any = runner._held_out(door.plan(write_tiny(tmp_path)), "read_test")
    assert (len(source), source[1].key, source.split) == (3, "1", "test")
    with pytest.raises(DataError, match=r"data\.read_test: sample 2 cannot be read: answer is empty; .*mend"):
        list(source)
    assert len(copy.deepcopy(source)) == 3
    monkeypatch.setattr(runner, "load_factory", lambda spec: _task)
    answer = runner._run_task(SimpleNamespace(plan=door.plan(write_tiny(tmp_path))), "generation")  # type: ignore[arg-type]
    assert answer == {"score": 3}
