"""A run that was broken off and resumed ends bit for bit like one that was not."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from janus_plugins.core.errors import CheckpointError, DataError, Interrupted
from janus_plugins.training.recipe import Recipe
from janus_plugins.training.world import World

from .runs import Crash, CrashingRecipe, assert_same, losses, start, weights
from .toys import ToyRecipe, some_slow, toy_model, toy_run, toy_stage, zero

STAGES = (
    toy_stage("one", steps=4, learn={"language_model": 1e-2, "generation.image.head": 1e-2}),
    toy_stage("two", steps=4, learn={"understanding.image": 1e-2, "language_model.norm": 1e-3}),
)
SETTINGS = [zero(stage, precision) for precision in ("fp32", "bf16") for stage in range(4)]


@pytest.mark.parametrize("engine", some_slow(SETTINGS, zero(2, "bf16")))
def test_resume_is_exact_within_a_stage_and_across_its_end(
    engine: dict[str, Any], world: World, tmp_path: Path
) -> None:
    engine = {**engine, "save_every": 2}
    start(toy_run(*STAGES, engine=engine), tmp_path / "whole", world)
    # crash after a step checkpoint, at the end of stage one, inside stage two
    for crashes in (3, 4, 7) if engine["precision"] == "fp32" else (7,):
        out = tmp_path / f"broken_{crashes}"
        with pytest.raises(Crash):
            start(toy_run(*STAGES, data=CrashingRecipe(crashes), engine=engine), out, world)
        result = start(toy_run(*STAGES, engine=engine), out, world, resume=True)
        assert result.steps == 8
        assert losses(out) == losses(tmp_path / "whole")
        for stage in (0, 1):
            assert_same(weights(out, stage), weights(tmp_path / "whole", stage))


@pytest.fixture
def aside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the loop fetch each batch while the device is at the one before, as on a GPU."""
    monkeypatch.setattr(World, "works_aside", True)


def test_a_batch_that_was_fetched_ahead_is_taken_again(world: World, tmp_path: Path, aside: None) -> None:
    engine = {"save_every": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(World, "works_aside", False)
        start(toy_run(*STAGES, engine=engine), tmp_path / "whole", world)
    with pytest.raises(Crash):
        start(toy_run(*STAGES, data=CrashingRecipe(7), engine=engine), tmp_path / "broken", world)
    start(toy_run(*STAGES, engine=engine), tmp_path / "broken", world, resume=True)
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    assert_same(weights(tmp_path / "broken", 1), weights(tmp_path / "whole", 1))


class BrokenRecipe(ToyRecipe):
    """Fail to make the third batch."""

    def bad(self, step: int) -> tuple[Any, ...]:
        if step == 2:
            raise DataError("the third batch cannot be read")
        return ()


def test_a_step_is_taken_before_the_error_of_the_next_ones_data(
    world: World, tmp_path: Path, aside: None
) -> None:
    with pytest.raises(DataError, match="the third batch"):
        start(toy_run(data=BrokenRecipe()), tmp_path, world)
    assert len(losses(tmp_path)) == 2


def test_resuming_a_finished_run_changes_nothing(world: World, tmp_path: Path) -> None:
    start(toy_run(*STAGES), tmp_path, world)
    before = weights(tmp_path, 1)
    assert start(toy_run(*STAGES), tmp_path, world, resume=True).steps == 8
    assert_same(weights(tmp_path, 1), before)


def test_resume_without_a_checkpoint_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        start(toy_run(), tmp_path, world, resume=True)


def test_a_run_is_not_started_over_another(world: World, tmp_path: Path) -> None:
    start(toy_run(), tmp_path, world)
    with pytest.raises(CheckpointError, match="already holds stage_0"):
        start(toy_run(), tmp_path, world)


def test_stages_one_by_one_equal_the_whole_run(world: World, tmp_path: Path) -> None:
    start(toy_run(*STAGES), tmp_path / "whole", world)
    for name in ("one", "two"):
        start(toy_run(*STAGES), tmp_path / "parts", world, only_stage=name)
    assert_same(weights(tmp_path / "parts", 1), weights(tmp_path / "whole", 1))


def test_a_stage_alone_needs_the_one_before(world: World, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no stage_0"):
        start(toy_run(*STAGES), tmp_path, world, only_stage="two")


class SignalledRecipe(ToyRecipe):
    """Send a signal to this process while the third batch is being made."""

    def __init__(self, number: int) -> None:
        self.number = number

    def bad(self, step: int) -> tuple[Any, ...]:
        if step == 2:
            os.kill(os.getpid(), self.number)
        return ()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_saves_and_stops(number: int, code: int, world: World, tmp_path: Path) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # these tests may themselves run under nohup
    try:
        with pytest.raises(Interrupted, match="after step 2") as stopped:
            start(toy_run(data=SignalledRecipe(number)), tmp_path / "out", world)
        assert stopped.value.exit_code == code
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)
    start(toy_run(), tmp_path / "out", world, resume=True)
    start(toy_run(), tmp_path / "whole", world)
    assert losses(tmp_path / "out") == losses(tmp_path / "whole")
    assert_same(weights(tmp_path / "out", 0), weights(tmp_path / "whole", 0))


def test_nohup_keeps_a_run_going(world: World, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        start(toy_run(data=SignalledRecipe(signal.SIGHUP)), tmp_path / "out", world)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("stages", "engine", "named"),
    [
        ((toy_stage("one", steps=6, clip=0.5),), {}, r"stages\[0\].clip: 1.0 was saved, this run has 0.5"),
        ((toy_stage("one"),), zero(1), r"engine.zero_stage: 0 was saved, this run has 1"),
        (
            (toy_stage("one"),),
            {"deepspeed": {"zero_optimization": {"stage": 0, "round_robin_gradients": True}}},
            r"engine.round_robin_gradients: False was saved, this run has True",
        ),
        ((toy_stage("one"), toy_stage("new")), {}, None),  # later stages are free
    ],
)
def test_a_changed_run_is_refused_naming_the_keys(
    stages: Any, engine: dict[str, Any], named: str | None, world: World, tmp_path: Path
) -> None:
    first = toy_run(toy_stage("one"), data=CrashingRecipe(3), engine={"save_every": 1})
    with pytest.raises(Crash):
        start(first, tmp_path, world)
    recipe = toy_run(*stages, engine=engine)
    if named is None:
        assert start(recipe, tmp_path, world, resume=True).steps == 12
        return
    with pytest.raises(CheckpointError, match=named):
        start(recipe, tmp_path, world, resume=True)


def test_another_number_of_ranks_is_refused_with_the_next_step(world: World, tmp_path: Path) -> None:
    with pytest.raises(Crash):
        start(toy_run(data=CrashingRecipe(3), engine={"save_every": 2}), tmp_path, world)
    manifest = tmp_path / "checkpoints" / "step_2" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "world_size": 4}))
    with pytest.raises(CheckpointError, match="saved by 4 ranks, this run has 1; start 4 ranks again"):
        start(toy_run(), tmp_path, world, resume=True)


def test_old_checkpoints_go(world: World, tmp_path: Path) -> None:
    start(toy_run(engine={"save_every": 1, "keep": 2}), tmp_path, world)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["latest", "stage_0", "step_4", "step_5"]


@pytest.mark.parametrize("engine", some_slow(SETTINGS, zero(0, "bf16"), zero(2), zero(3, "bf16")))
def test_resuming_needs_nothing_of_what_the_run_began_with(
    engine: dict[str, Any], world: World, tmp_path: Path
) -> None:
    def began(seed: int, data: ToyRecipe | None = None) -> Recipe:
        recipe = toy_run(STAGES[1], data=data, engine={**engine, "save_every": 2})
        return dataclasses.replace(recipe, build=lambda weights: toy_model(seed))

    start(began(7), tmp_path / "whole", world)
    with pytest.raises(Crash):
        start(began(7, CrashingRecipe(3)), tmp_path / "broken", world)
    start(began(8), tmp_path / "broken", world, resume=True)
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    assert_same(weights(tmp_path / "broken", 0), weights(tmp_path / "whole", 0))


def test_what_the_run_began_with_must_be_whole(world: World, tmp_path: Path) -> None:
    engine = {**zero(0, "bf16"), "save_every": 2}
    with pytest.raises(Crash):
        start(toy_run(STAGES[1], data=CrashingRecipe(3), engine=engine), tmp_path, world)
    with (tmp_path / "checkpoints/start/model.safetensors").open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"!")
    with pytest.raises(CheckpointError, match=r"step_2 builds on start: .* is damaged"):
        start(toy_run(STAGES[1], engine=engine), tmp_path, world, resume=True)
    shutil.rmtree(tmp_path / "checkpoints/start")
    with pytest.raises(CheckpointError, match=r"step_2 builds on start .*, which is gone"):
        start(toy_run(STAGES[1], engine=engine), tmp_path, world, resume=True)


def test_a_stage_may_begin_with_a_given_model(world: World, tmp_path: Path) -> None:
    engine = {**zero(0, "bf16"), "save_every": 2}

    def given(data: ToyRecipe | None = None) -> Recipe:
        return toy_run(*STAGES, data=data, engine=engine, source="there")

    start(toy_run(STAGES[1], engine=engine), tmp_path / "alone", world)
    with pytest.raises(Crash):
        start(given(CrashingRecipe(3)), tmp_path / "given", world, only_stage="two")
    start(given(), tmp_path / "given", world, only_stage="two", resume=True)
    assert_same(weights(tmp_path / "given", 1), weights(tmp_path / "alone", 0))
    with pytest.raises(CheckpointError, match="already holds stage_1"):
        start(given(), tmp_path / "given", world, only_stage="two")


def test_a_newer_checkpoint_that_is_damaged_is_set_aside(world: World, tmp_path: Path) -> None:
    engine = {"save_every": 1, "keep": 2}
    with pytest.raises(Crash):
        start(toy_run(*STAGES, data=CrashingRecipe(6), engine=engine), tmp_path, world)
    for step in (5, 6):
        (tmp_path / f"checkpoints/step_{step}/rank_0.json").write_text("{}")
    (tmp_path / "checkpoints/step_9").mkdir()  # what a copy that was broken off leaves
    with pytest.raises(Crash):
        start(toy_run(*STAGES, data=CrashingRecipe(1), engine=engine), tmp_path, world, resume=True)
    left = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    aside = {"step_5.unusable", "step_6.unusable", "step_9.unusable"}
    assert left == {"stage_0", "step_5", "latest", *aside}
    assert start(toy_run(*STAGES, engine=engine), tmp_path, world, resume=True).steps == 8


def test_an_earlier_stage_is_not_resumed_behind_later_ones(world: World, tmp_path: Path) -> None:
    start(toy_run(*STAGES), tmp_path, world)
    before = (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(CheckpointError, match=r"stage 'one' is behind this run: .* holds stage_1"):
        start(toy_run(*STAGES), tmp_path, world, only_stage="one", resume=True)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_a_signal_in_the_last_step_is_heeded(world: World, tmp_path: Path) -> None:
    def save(model: object, folder: Path) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="SIGINT at the end of training") as stopped:
        start(toy_run(save_native=save), tmp_path, world)
    assert stopped.value.exit_code == 130
    assert start(toy_run(), tmp_path, world, resume=True).steps == 6


def test_a_run_that_recorded_less_goes_on(world: World, tmp_path: Path) -> None:
    engine, identity = {"save_every": 1}, {"data": {"a": 1}}
    with pytest.raises(Crash):
        start(toy_run(*STAGES, data=CrashingRecipe(3), engine=engine, identity=identity), tmp_path, world)
    recipe = toy_run(*STAGES, identity={**identity, "draws": [["a"], ["a"]]})
    assert start(recipe, tmp_path, world, resume=True).steps == 8


@pytest.mark.parametrize(
    ("data", "draws", "named"),
    [
        ({"a": 1, "b": 2, "new": 3}, [["a"], ["new"]], None),  # what a later stage draws from is free
        ({"a": 9, "b": 2}, [["a"], ["b"]], r"data.a: 1 was saved, this run has 9"),
        ({"a": 1, "b": 2}, [["b"], ["b"]], r"draws\[0\]\[0\]: 'a' was saved, this run has 'b'"),
    ],
)
def test_data_counts_where_it_was_drawn_from(
    data: dict[str, int], draws: list[list[str]], named: str | None, world: World, tmp_path: Path
) -> None:
    identity = {"data": {"a": 1, "b": 2}, "draws": [["a"], ["b"]]}
    first = toy_run(*STAGES, data=CrashingRecipe(3), engine={"save_every": 1}, identity=identity)
    with pytest.raises(Crash):
        start(first, tmp_path, world)
    recipe = toy_run(*STAGES, identity={"data": data, "draws": draws})
    if named is None:
        assert start(recipe, tmp_path, world, resume=True).steps == 8
    else:
        with pytest.raises(CheckpointError, match=named):
            start(recipe, tmp_path, world, resume=True)


EYE = "understanding.image.encoder"


def _made_with(given: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Return an identity whose encoder has options in the run file, and these altogether."""
    block = {"understanding": {"image": {"encoder": {"use": "eye", "options": given}}}}
    return {"model": block, "data": {}, "draws": [[], []], "options": {EYE: options}}


@pytest.mark.parametrize(
    ("given", "options", "named"),
    [
        ({}, {"scale": 2.0}, rf"options.{EYE}.scale: 1.0 was saved, this run has 2.0"),  # another default
        ({"scale": 2.0}, {"scale": 2.0}, rf"options.{EYE}.scale: 1.0 was saved, this run has 2.0"),
        ({"scale": 1.0}, {"scale": 1.0}, None),  # what held before, written down
        ({}, {"scale": 1.0, "new": 3}, None),
        ({"new": 7}, {"scale": 1.0, "new": 7}, rf"model.{EYE}.options.new: None was saved, this run has 7"),
    ],
)
def test_options_are_those_that_hold(
    given: dict[str, Any], options: dict[str, Any], named: str | None, world: World, tmp_path: Path
) -> None:
    """A plugin of another version may have other defaults: the model would be another one, unsaid."""
    saved = _made_with({}, {"scale": 1.0})
    first = toy_run(*STAGES, data=CrashingRecipe(3), engine={"save_every": 1}, identity=saved)
    with pytest.raises(Crash):
        start(first, tmp_path, world)
    recipe = toy_run(*STAGES, identity=_made_with(given, options))
    if named is None:
        assert start(recipe, tmp_path, world, resume=True).steps == 8
    else:
        with pytest.raises(CheckpointError, match=named):
            start(recipe, tmp_path, world, resume=True)


@pytest.mark.parametrize(
    ("use", "made_by", "named"),
    [
        ("acme/eye", "acme==1.1 understanding_encoder/eye", None),  # another plugin offers the name since
        (
            "eye",
            "zeta==1.0 understanding_encoder/eye",
            rf"{EYE}: 'acme/eye' was saved, this run has 'zeta/eye'",
        ),
        (
            "zeta/eye",
            "zeta==1.0 understanding_encoder/eye",
            rf"{EYE}.use: 'eye' was saved, this run has 'zeta/eye'",
        ),
    ],
)
def test_a_component_is_whose_it_is_however_it_is_called(
    use: str,
    made_by: str,
    named: str | None,
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A bare name may be two plugins' today, or another's."""

    def made(use: str, made_by: str) -> dict[str, Any]:
        block = {"understanding": {"image": {"encoder": {"use": use, "options": {}}}}}
        identity = {"model": block, "data": {}, "draws": [[], []], "options": {EYE: {}}}
        watcher = {"callbacks.watch": "watchers==1.0 callback/watch"} if use == "eye" else {}
        return {"identity": identity, "provenance": {"parts": {EYE: made_by, **watcher}}}

    saved = made("eye", "acme==1.0 understanding_encoder/eye")
    with pytest.raises(Crash):
        start(toy_run(*STAGES, data=CrashingRecipe(3), engine={"save_every": 1}, **saved), tmp_path, world)
    recipe = toy_run(*STAGES, **made(use, made_by))
    if named is None:
        assert start(recipe, tmp_path, world, resume=True).steps == 8
        assert "it was made with acme 1.0; acme 1.1 is installed" in " ".join(capsys.readouterr().out.split())
    else:
        with pytest.raises(CheckpointError, match=named) as refused:
            start(recipe, tmp_path, world, resume=True)
        assert str(refused.value).count("was saved") == 1


def test_bad_data_before_the_first_step_leaves_nothing_to_resume(world: World, tmp_path: Path) -> None:
    class First(ToyRecipe):
        def bad(self, step: int) -> tuple[Any, ...]:
            raise DataError("the first batch cannot be read")

    with pytest.raises(DataError, match="the first batch"):
        start(toy_run(data=First()), tmp_path, world)
    assert start(toy_run(toy_stage(steps=3)), tmp_path, world).steps == 3


def test_a_run_begun_at_a_later_stage_is_saved_before_its_first_step(world: World, tmp_path: Path) -> None:
    class Signalled(ToyRecipe):
        def bad(self, step: int) -> tuple[Any, ...]:
            os.kill(os.getpid(), signal.SIGTERM)
            return ()

    with pytest.raises(Interrupted, match="after step 0; everything is saved"):
        start(toy_run(*STAGES, data=Signalled(), source="there"), tmp_path, world, only_stage="two")
    assert start(toy_run(*STAGES), tmp_path, world, only_stage="two", resume=True).steps == 4


def test_a_damaged_manifest_does_not_make_a_stage_a_past_one(world: World, tmp_path: Path) -> None:
    engine = {"save_every": 1}
    with pytest.raises(Crash):
        start(toy_run(*STAGES, data=CrashingRecipe(7), engine=engine), tmp_path, world)
    (tmp_path / "checkpoints/step_7/manifest.json").write_text("{")
    again = toy_run(*STAGES, engine=engine)
    assert start(again, tmp_path, world, only_stage="two", resume=True).steps == 8
