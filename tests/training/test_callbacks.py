"""Callbacks see every moment once, disturb nothing, are heeded on all ranks, and fail by their plugin's name."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from janus_plugins.core.errors import Interrupted, PluginError
from janus_plugins.training.metrics import read_metrics
from janus_plugins.training.world import World

from .runs import Crash, CrashingRecipe, assert_same, losses, start, weights
from .test_ranks import launch
from .toys import toy_run, toy_stage
from .watchers import Acting, FailingAtTheEnd, Misspelt, Noting, Stubborn, Unsaveable, watcher

STAGES = (toy_stage("one", steps=3), toy_stage("two", steps=3))


@pytest.fixture
def notes() -> Iterator[list[tuple[object, ...]]]:
    Noting.notes.clear()
    yield Noting.notes
    Noting.notes.clear()


def test_every_moment_is_told_once_and_in_order(
    notes: list[tuple[object, ...]], world: World, tmp_path: Path
) -> None:
    start(toy_run(*STAGES, engine={"save_every": 2}, callbacks=(watcher(Noting),)), tmp_path, world)
    assert notes == [
        ("train_start", "", 0, 0),
        ("stage_start", "one", 0, 0),
        ("step", "one", 1, 1, 1),
        ("step", "one", 2, 2, 2),
        ("checkpoint", "one", 2, 2, "step_2"),
        ("step", "one", 3, 3, 3),
        ("stage_end", "one", 3, 3),
        ("checkpoint", "one", 3, 3, "stage_0"),
        ("stage_start", "two", 0, 3),
        ("step", "two", 1, 4, 4),
        ("checkpoint", "two", 1, 4, "step_4"),
        ("step", "two", 2, 5, 5),
        ("step", "two", 3, 6, 6),
        ("stage_end", "two", 3, 6),
        ("checkpoint", "two", 3, 6, "stage_1"),
        ("train_end", "two", 3, 6, ""),
    ]


def test_watching_changes_no_number(notes: object, world: World, tmp_path: Path) -> None:
    start(toy_run(*STAGES), tmp_path / "alone", world)
    start(toy_run(*STAGES, callbacks=(watcher(Noting),)), tmp_path / "watched", world)
    assert losses(tmp_path / "alone") == losses(tmp_path / "watched")
    assert_same(weights(tmp_path / "alone", 1), weights(tmp_path / "watched", 1))


@pytest.mark.parametrize("crash", [3, 5], ids=["from a step", "from the end of a stage"])
def test_state_survives_a_resume(
    crash: int, notes: list[tuple[object, ...]], world: World, tmp_path: Path
) -> None:
    options = {"engine": {"save_every": 2}, "callbacks": (watcher(Noting),)}
    stages = (toy_stage("one", steps=5), toy_stage("two", steps=2))
    with pytest.raises(Crash):
        start(toy_run(*stages, data=CrashingRecipe(crash), **options), tmp_path, world)
    assert notes[-1][0::4] == ("train_end", "Crash")
    notes.clear()
    start(toy_run(*stages, **options), tmp_path, world, resume=True)
    steps = [(note[3], note[4]) for note in notes if note[0] == "step"]
    assert steps == [(step, step) for step in range(3 if crash == 3 else 6, 8)]
    manifest = json.loads((tmp_path / "checkpoints" / "stage_1" / "manifest.json").read_text())
    assert manifest["callbacks"]["states"] == {"noting": {"steps": 7}}


def test_callbacks_may_come_and_go_on_resuming(notes: object, world: World, tmp_path: Path) -> None:
    with pytest.raises(Crash):
        start(toy_run(*STAGES, data=CrashingRecipe(4), callbacks=(watcher(Acting, at=99),)), tmp_path, world)
    assert start(toy_run(*STAGES, callbacks=(watcher(Noting),)), tmp_path, world, resume=True).steps == 6


def test_a_stage_ends_early_and_the_next_begins(world: World, tmp_path: Path) -> None:
    said = io.StringIO()
    result = start(
        toy_run(*STAGES, callbacks=(watcher(Acting, at=2, does="end"),)),
        tmp_path,
        world,
        console=Console(file=said, width=200),
    )
    assert result.steps == 5
    assert [(row["stage"], row["stage_step"]) for row in read_metrics(tmp_path)] == [
        ("one", 1), ("one", 2), ("two", 1), ("two", 2), ("two", 3)
    ]  # fmt: skip
    assert (
        "stage one ends after step 2: callbacks.acting (callback/acting): enough of this stage"
        in said.getvalue()
    )
    assert start(toy_run(*STAGES), tmp_path, world, resume=True).steps == 5


def test_a_request_that_was_saved_is_heeded_after_a_resume(world: World, tmp_path: Path) -> None:
    options = {"engine": {"save_every": 2}, "callbacks": (watcher(Acting, at=2, does="end"),)}
    with pytest.raises(Crash):  # between the step that asks and the place where it is heeded
        start(toy_run(*STAGES, data=CrashingRecipe(2), **options), tmp_path, world)
    assert start(toy_run(*STAGES, **options), tmp_path, world, resume=True).steps == 5


@pytest.mark.parametrize(("at", "saved"), [(2, "step_2"), (3, "stage_0")])
def test_a_stop_saves_and_goes_on_bit_for_bit(at: int, saved: str, world: World, tmp_path: Path) -> None:
    start(toy_run(*STAGES), tmp_path / "whole", world)
    out = tmp_path / "stopped"
    with pytest.raises(Interrupted, match=rf"callback/acting\): enough, after step {at}") as stopped:
        start(toy_run(*STAGES, callbacks=(watcher(Acting, at=at, does="stop"),)), out, world)
    assert stopped.value.exit_code == 143
    assert (out / "checkpoints" / saved).is_dir()
    assert start(toy_run(*STAGES), out, world, resume=True).steps == 6
    assert losses(out) == losses(tmp_path / "whole")


def test_a_stop_after_the_very_last_step_stops_nothing(world: World, tmp_path: Path) -> None:
    stops = watcher(Acting, at=6, does="stop")
    assert start(toy_run(*STAGES, callbacks=(stops,)), tmp_path, world).steps == 6


@pytest.mark.parametrize(
    ("at", "saved"), [(2, "step_2"), (3, "stage_0"), (6, "stage_1")], ids=["inside", "end", "very end"]
)
def test_what_a_callback_raises_names_its_plugin_and_stops_after_saving(
    at: int, saved: str, world: World, tmp_path: Path
) -> None:
    with pytest.raises(PluginError) as failed:
        start(toy_run(*STAGES, callbacks=(watcher(Acting, at=at, does="raise"),)), tmp_path, world)
    said = str(failed.value)
    assert said == (
        "callbacks.acting (callback/acting) of acme-watch 2.1 failed in on_step_end: ValueError: it broke"
    )
    assert isinstance(failed.value.__cause__, ValueError)
    assert (tmp_path / "checkpoints" / saved).is_dir()
    assert start(toy_run(*STAGES), tmp_path, world, resume=True).steps == 6


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (Acting, {"at": 1, "does": "edit"}, "failed in on_step_end: TypeError"),
        (Misspelt, {}, r"on_step_ended\(\) is no moment. Did you mean 'on_step_end'"),
        (Unsaveable, {}, "failed in state_dict: TypeError: Object of type set"),
    ],
)
def test_other_mistakes(
    kind: type, options: dict[str, object], said: str, notes: object, world: World, tmp_path: Path
) -> None:
    with pytest.raises(PluginError, match=said):
        start(toy_run(*STAGES, callbacks=(watcher(kind, **options),)), tmp_path, world)


def test_a_state_that_is_not_taken_back_is_an_error(notes: object, world: World, tmp_path: Path) -> None:
    stubborn = toy_run(*STAGES, callbacks=(watcher(Stubborn),))
    start(stubborn, tmp_path, world)
    with pytest.raises(PluginError, match="failed in load_state_dict: KeyError: 'another version'"):
        start(stubborn, tmp_path, world, resume=True)


def test_a_failure_at_the_very_end_is_a_warning(notes: object, world: World, tmp_path: Path) -> None:
    said = io.StringIO()
    recipe = toy_run(*STAGES, callbacks=(watcher(FailingAtTheEnd),))
    assert start(recipe, tmp_path, world, console=Console(file=said, width=200)).steps == 6
    assert "warning: callbacks.failingattheend" in said.getvalue()
    assert "nowhere to write" in said.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize(("does", "code"), [("raise", 3), ("stop", 143), ("end", 0)])
def test_two_ranks_do_alike_what_one_of_them_asks_for(does: str, code: int, tmp_path: Path) -> None:
    launch(2, str(tmp_path), "2", f"callback-{does}", module="toy_ranks", code=code)
    told = {path.name: path.read_text() for path in tmp_path.glob("rank_*.txt")}
    steps = read_metrics(tmp_path)[-1]["step"]
    if does == "end":
        assert (told, steps) == ({}, 3)
        assert (tmp_path / "checkpoints" / "stage_0").is_dir()
        return
    assert (set(told), steps) == ({"rank_0.txt", "rank_1.txt"}, 3)
    assert (tmp_path / "checkpoints" / "step_3").is_dir()
    if does == "raise":
        assert told["rank_0.txt"] == f"rank 1 stopped: {told['rank_1.txt']}"
    else:
        assert told["rank_0.txt"] == told["rank_1.txt"]
