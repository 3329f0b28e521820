"""What a run writes: JSON lines without doubles, TensorBoard, the quarantine, the report."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import threading
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from janus_plugins.core.errors import CheckpointError, DataError
from janus_plugins.training.metrics import Metrics, cut_after, read_metrics, unreadable
from janus_plugins.training.recipe import Recipe
from janus_plugins.training.report import by_stage, write_report
from janus_plugins.training.run import run_recipe
from janus_plugins.training.world import World

from .runs import Crash, CrashingRecipe, losses, start
from .toys import ToyBadRecord, ToyRecipe, toy_run, toy_stage


def test_every_step_has_a_line_and_a_point(world: World, tmp_path: Path) -> None:
    start(toy_run(toy_stage("one", steps=3), toy_stage("two", steps=2)), tmp_path, world)
    lines = read_metrics(tmp_path)
    assert [(line["step"], line["stage"], line["stage_step"]) for line in lines] == [
        (1, "one", 1), (2, "one", 2), (3, "one", 3), (4, "two", 1), (5, "two", 2)
    ]  # fmt: skip
    for line in lines:
        assert line["loss"].keys() == {"text.text", "generation.image"}
        assert 0 <= line["data_wait"] <= 1
        assert line["packing"] == 1.0
        assert line["tokens_per_second"] == pytest.approx(12 / line["seconds"])
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    points = [(event.step, event.value) for event in events.Scalars("loss/text.text")]
    assert points == [(line["step"], pytest.approx(line["loss"]["text.text"])) for line in lines]


def test_a_resumed_run_has_no_step_twice(world: World, tmp_path: Path) -> None:
    with pytest.raises(Crash):
        start(toy_run(data=CrashingRecipe(5), engine={"save_every": 2}), tmp_path, world)
    assert [step for step, *_ in losses(tmp_path)] == [1, 2, 3, 4, 5]
    start(toy_run(), tmp_path, world, resume=True)
    assert [step for step, *_ in losses(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_line_cut_in_half_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    cut_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    path.write_bytes(path.read_bytes() + b'{"step": 2, \xff\x00')  # as a machine that crashed can leave it
    cut_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


@dataclass(frozen=True)
class ToyNamedRecord(ToyBadRecord):
    """Say of which data entry the sample is, as the loader's records do."""

    source: str = "pictures"


class BadRecipe(ToyRecipe):
    """Bring `number` unreadable samples with every step."""

    def __init__(self, number: int) -> None:
        self.number = number

    def bad(self, step: int) -> tuple[Any, ...]:
        return tuple(ToyBadRecord(f"pictures[{step}/{index}]", "truncated") for index in range(self.number))


def test_bad_samples_are_named_and_counted(world: World, tmp_path: Path) -> None:
    result = start(toy_run(data=BadRecipe(2)), tmp_path, world)
    assert result.bad_samples == 12
    named = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert named[:2] == [
        {"step": 1, "key": "pictures[0/0]", "reason": "truncated"},
        {"step": 1, "key": "pictures[0/1]", "reason": "truncated"},
    ]
    assert len(named) == 12


def test_what_could_not_be_read_is_told_by_stage_and_entry(world: World, tmp_path: Path) -> None:
    class Tired(CrashingRecipe):
        def bad(self, step: int) -> tuple[Any, ...]:
            return (ToyNamedRecord("pictures[7]", "truncated"),) * 2 if step == 4 else ()

    said = Console(file=io.StringIO(), width=300)
    stages = (toy_stage("one", steps=2), toy_stage("two", steps=6))
    with pytest.raises(Crash):
        start(toy_run(*stages, data=Tired(7), engine={"save_every": 2}), tmp_path, world)
    start(
        toy_run(*stages, data=Tired(99), engine={"save_every": 2}), tmp_path, world, resume=True, console=said
    )
    seen = (read_metrics(tmp_path)[-1]["samples"] - read_metrics(tmp_path)[1]["samples"]) + 2
    told = f"2 of {seen} (pictures 2)"
    assert (
        f"stage two: {told} samples could not be read: see {tmp_path / 'quarantine.jsonl'}"
        in said.file.getvalue()
    )
    assert "stage one:" not in said.file.getvalue()
    page = write_report(tmp_path).read_text()
    assert f"<td>{told}</td>" in page
    assert page.count("<td>none</td>") == 1


def test_too_many_bad_samples_stop_the_run(world: World, tmp_path: Path) -> None:
    recipe = toy_run(toy_stage(steps=60), data=BadRecipe(3), engine={"max_bad_samples": 0.7})
    with pytest.raises(DataError, match=r"75 of 100 samples could not be read.*max_bad_samples \(0.7\)"):
        start(recipe, tmp_path, world)


def test_what_was_trained_before_bad_data_is_saved(world: World, tmp_path: Path) -> None:
    def run(limit: float) -> Recipe:
        return toy_run(toy_stage(steps=30), data=BadRecipe(3), engine={"max_bad_samples": limit})

    start(run(0.9), tmp_path / "whole", world)
    with pytest.raises(DataError, match="75 of 100 samples"):
        start(run(0.7), tmp_path / "stopped", world)
    assert (tmp_path / "stopped/checkpoints/step_24").is_dir()
    result = start(run(0.9), tmp_path / "stopped", world, resume=True)
    assert result.bad_samples == 90
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    named = [(tmp_path / out / "quarantine.jsonl").read_text() for out in ("stopped", "whole")]
    assert named[0] == named[1]


def test_samples_are_shown_and_do_not_disturb_the_run(world: World, tmp_path: Path) -> None:
    import torch

    def sampler(model: Any) -> list[tuple[str, np.ndarray]]:
        assert not model.training
        torch.rand(9)
        return [("seven", np.full((4, 4, 3), 200, np.uint8))]

    start(toy_run(sampler=sampler, engine={"sample_every": 2}), tmp_path / "with", world)
    start(toy_run(), tmp_path / "without", world)
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    events = EventAccumulator(str(tmp_path / "with" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Images("samples/seven")] == [2, 4, 6]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own
def test_files_that_cannot_be_written_are_named(tmp_path: Path, no_file_beyond: Any) -> None:
    named = [{"key": "pictures[0]", "reason": "truncated"}]
    pictures = [("seven", np.zeros((4, 4, 3), np.uint8))]
    values: dict[str, Any] = {"stage": "one", "stage_step": 1, "stage_steps": 2, "step": 1}
    before = set(threading.enumerate())
    for file, write in (
        ("quarantine.jsonl", lambda metrics: metrics.quarantine(named, 1)),
        ("metrics.jsonl", lambda metrics: metrics.record(values)),
        ("tensorboard", lambda metrics: metrics.pictures(pictures, 1)),
        ("metrics.jsonl", lambda metrics: metrics.start(1)),
    ):
        metrics = Metrics(tmp_path / file, active=True, log_every=9, console=Console(file=io.StringIO()))
        (tmp_path / file).mkdir(exist_ok=True)
        metrics.start(0)
        (tmp_path / file / "metrics.jsonl").write_text('{"step": 1}\n')
        message = rf"{file} cannot be written: .*; make room and go on with --resume"
        with no_file_beyond(5), pytest.raises(CheckpointError, match=message), metrics:
            write(metrics)
    for thread in set(threading.enumerate()) - before:
        thread.join(10)  # what TensorBoard's says at its end must not befall the next test


def test_a_report_that_cannot_be_written_is_named_and_leaves_the_former(
    world: World, tmp_path: Path, no_file_beyond: Any
) -> None:
    start(toy_run(), tmp_path, world)
    before = write_report(tmp_path).read_text()
    message = r"report\.html cannot be written: .*; make room and go on with --resume"
    with no_file_beyond(2000), pytest.raises(CheckpointError, match=message):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text() == before


def test_a_long_run_is_told_without_having_all_of_it_in_memory(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(toy_run(toy_stage(steps=1)), tmp_path, world)
    write_report(tmp_path)  # imports what draws
    (line,) = read_metrics(tmp_path)
    path = tmp_path / "metrics.jsonl"
    loss = dict.fromkeys(line["loss"], 1.0)
    number = 20_000
    with path.open("w") as stream:
        for step in range(1, number + 1):
            stream.write(json.dumps({**line, "step": step, "loss": loss, "samples": step}) + "\n")
    tracemalloc.start()
    try:
        cut_after(path, number - 1)
        assert unreadable(tmp_path) == {}
        page = write_report(tmp_path).read_text()
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < path.stat().st_size
    assert len(page) < 200_000
    assert f"<td>one</td><td>{number - 1}</td>" in page
    assert "step (means of 10)" in page
    assert "generation.image 1 text.text 1<" in page


def test_the_last_losses_are_of_the_last_tenth_and_leave_out_what_was_not_finite() -> None:
    step = {"applied": True, "seconds": 1.0, "tokens": 1, "data_wait": 0.0, "packing": 1.0}
    values = [9.0] * 18 + [None, 2.0]
    numbers = by_stage({**step, "step": place, "stage": "one", "loss": {"a": value}}
                       for place, value in enumerate(values))["one"]  # fmt: skip
    assert numbers.last_losses() == {"a": 2.0}
    numbers.add({**step, "step": 20, "loss": {"b": 4.0}})
    assert numbers.last_losses() == {"a": 2.0, "b": 4.0}
    assert numbers.steps.tolist() == list(range(21))


def test_lines_where_there_is_no_terminal_and_a_bar_where_there_is(world: World, tmp_path: Path) -> None:
    plain = Console(file=io.StringIO())
    start(toy_run(engine={"log_every": 2}), tmp_path / "plain", world, console=plain)
    text = plain.file.getvalue()
    line = r"^one (\d)/6 generation.image=[\d.]+ text.text=[\d.]+ \d+ tok/s \d+ s left$"
    assert re.findall(line, text, re.M) == ["2", "4", "6"]
    assert "learns language_model " in text
    assert "50 are frozen" in text
    bar = Console(file=io.StringIO(), force_terminal=True, width=160)
    start(toy_run(toy_stage("one [/red]")), tmp_path / "bar", world, console=bar)
    assert "6/6" in bar.file.getvalue()
    assert "one [/red]" in bar.file.getvalue()


def test_a_run_whose_lines_nobody_reads_goes_on(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As behind `| tee log`: Ctrl-C ends tee at once, and the run has a checkpoint to save."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        run_recipe(toy_run(toy_stage(steps=3)), tmp_path, world)
        stdout.write("and what is printed later is no error, either")
    assert len(read_metrics(tmp_path)) == 3
    assert capsys.readouterr().err.count("training goes on") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_run_whose_lines_have_no_room_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path("/dev/full").open("w", buffering=1) as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        metrics = Metrics(tmp_path, active=True, log_every=1)
        for _ in range(2):
            metrics.say("a line")
    said = capsys.readouterr().err
    assert said.count("No space left on device); training goes on, and metrics.jsonl has its numbers") == 1


def test_the_report_holds_everything_itself(world: World, tmp_path: Path) -> None:
    start(toy_run(toy_stage("one <1>"), toy_stage("two")), tmp_path, world)
    picture = tmp_path / "grid.png"
    picture.write_bytes(b"\x89PNG not really")
    evaluation = {
        "understanding": 0.975,
        "ceilings": {"digits": {"real": 0.99}},
        "details": {"n": {"deep": 1}},
    }
    page = write_report(tmp_path, evaluation, {"eight & nine": picture}).read_text()
    assert "<td>one &lt;1&gt;</td>" in page
    assert page.count("<svg") == 2
    assert '<td>understanding</td><td class="number">0.975</td>' in page
    assert '<td>ceilings: digits: real</td><td class="number">0.99</td>' in page
    assert "deep" not in page
    assert base64.b64encode(b"\x89PNG not really").decode() in page
    assert "eight &amp; nine" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
