"""Damaged, foreign and evil checkpoints are refused; a full disk leaves the last good one alone."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from janus_plugins.core.errors import CheckpointError
from janus_plugins.training.checkpoint import Checkpoints, Position
from janus_plugins.training.publish import publish, read_manifest, seal, verify
from janus_plugins.training.resume import differences
from janus_plugins.training.world import World

from .runs import Crash, CrashingRecipe, assert_same, losses, start, weights
from .toys import toy_model, toy_run, toy_stage, zero

STAGES = (toy_stage("one", steps=2), toy_stage("two", steps=5))


@pytest.fixture(scope="module")
def broken_off(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that died in its second stage, with stage_0, step_3 and step_4."""
    out = tmp_path_factory.mktemp("broken")
    with pytest.raises(Crash):
        start(toy_run(*STAGES, data=CrashingRecipe(4), engine=zero(2, save_every=1, keep=2)), out, world)
    return out


@pytest.fixture
def out(broken_off: Path, tmp_path: Path) -> Path:
    shutil.copytree(broken_off, tmp_path / "out")
    return tmp_path / "out"


def resume(out: Path, world: World) -> Any:
    return start(toy_run(*STAGES, engine=zero(2)), out, world, resume=True)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def test_any_flipped_byte_and_any_cut_is_noticed(broken_off: Path, tmp_path: Path) -> None:
    draw = random.Random(7)
    for name in ("step_4", "stage_0"):
        source = broken_off / "checkpoints" / name
        manifest = read_manifest(source)
        verify(source, manifest)
        for file in manifest["files"]:
            copy = tmp_path / f"{name}-{file.replace('/', '-')}"
            shutil.copytree(source, copy)
            content = (copy / file).read_bytes()
            place = draw.randrange(len(content))
            flipped = bytes([content[place] ^ (1 << draw.randrange(8))])
            (copy / file).write_bytes(content[:place] + flipped + content[place + 1 :])
            with pytest.raises(CheckpointError, match=r"sha256"):
                verify(copy, manifest)
            (copy / file).write_bytes(content[: len(content) // 2])
            with pytest.raises(CheckpointError, match=r"bytes"):
                verify(copy, manifest)
            (copy / file).unlink()
            with pytest.raises(CheckpointError, match=r"missing"):
                verify(copy, manifest)


def test_a_foreign_file_and_a_link_are_refused(out: Path) -> None:
    folder = out / "checkpoints" / "step_4"
    manifest = read_manifest(folder)
    foreign = folder / "deepspeed" / "mp_rank_01_model_states.pt"
    foreign.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"mp_rank_01_model_states.pt is not in the manifest"):
        verify(folder, manifest)
    foreign.unlink()
    file = folder / "rank_0.json"
    file.rename(out / "elsewhere.json")
    file.symlink_to(out / "elsewhere.json")
    with pytest.raises(CheckpointError, match=r"rank_0.json is missing or a link"):
        verify(folder, manifest)


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def test_the_newest_good_one_is_taken_and_the_damaged_named(
    out: Path, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(out / "checkpoints" / "step_4" / "deepspeed" / "mp_rank_00_model_states.pt")
    (out / "checkpoints" / "latest").write_text("../../elsewhere/step_9")
    assert resume(out, world).steps == 7
    text = said(capsys)
    assert "skipped a damaged checkpoint" in text
    assert "step_4/deepspeed/mp_rank_00_model_states.pt is damaged" in text
    assert "step_3 (step 3)" in text
    start(toy_run(*STAGES, engine=zero(2)), tmp_path / "whole", world)
    assert losses(out) == losses(tmp_path / "whole")
    assert_same(weights(out, 1), weights(tmp_path / "whole", 1))


def test_a_step_without_the_stage_it_builds_on_is_not_taken(
    out: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(out / "checkpoints" / "stage_0" / "model.safetensors")
    with pytest.raises(CheckpointError, match="step_4 builds on stage_0") as refused:
        resume(out, world)
    assert "stage_0/model.safetensors is damaged" in str(refused.value)


def test_resuming_never_starts_afresh(out: Path, world: World) -> None:
    for name in ("step_3", "step_4", "stage_0"):
        (out / "checkpoints" / name / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match="nothing to resume from"):
        resume(out, world)


def test_one_being_written_is_not_taken(out: Path, world: World) -> None:
    shutil.copytree(out / "checkpoints" / "step_4", out / "checkpoints" / "step_5.tmp")
    assert resume(out, world).steps == 7
    assert not (out / "checkpoints" / "step_5.tmp").exists()


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("file", ["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"])
def test_an_evil_pickle_is_not_run(file: str, out: Path, world: World, tmp_path: Path) -> None:
    folder, marker, file = out / "checkpoints" / "step_4", tmp_path / "ran", f"deepspeed/{file}"
    held = torch.load(folder / file, weights_only=False)
    torch.save({**held, "evil": Evil(marker)}, folder / file)
    manifest = read_manifest(folder)
    manifest["files"][file] = seal(folder / file)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        resume(out, world)
    assert not marker.exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


FULL_DISK = """
import resource, sys, torch
from pathlib import Path
from {package}.runs import start
from {package}.toys import ToyRecipe, toy_run, zero
from janus_plugins.core.errors import CheckpointError
from janus_plugins.training.world import open_world

class Filling(ToyRecipe):
    def bad(self, step):
        if step == 3:  # from here on no file may grow past this
            resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
        return ()

torch.set_num_threads(1)  # as the runs that this one is compared with: a norm's last bits depend on it
try:
    start(toy_run(data=Filling(), engine=zero({stage}, save_every=2)), Path(sys.argv[1]), open_world())
except CheckpointError as error:
    print("REFUSED", error)
"""


@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_full_disk_leaves_the_last_good_checkpoint(stage: int, world: World, tmp_path: Path) -> None:
    package = __package__ or "training"
    root = Path(__file__).parents[package.count(".") + 1]
    code = FULL_DISK.format(package=package, stage=stage)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        cwd=root, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "REFUSED" in done.stdout, done.stdout + done.stderr
    assert "step_4 could not be written" in done.stdout
    assert "earlier checkpoints are intact" in done.stdout
    names = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir())
    assert names == ["latest", "step_2"]
    start(toy_run(engine=zero(stage)), tmp_path / "out", world, resume=True)
    start(toy_run(engine=zero(stage)), tmp_path / "whole", world)
    assert losses(tmp_path / "out") == losses(tmp_path / "whole")


def test_a_full_disk_at_the_end_of_a_stage_leaves_nothing_half_written(
    world: World, tmp_path: Path, no_file_beyond: Any
) -> None:
    checkpoints = Checkpoints(tmp_path, world, {}, keep=2)
    checkpoints.save_stage(Position(0, 6, 6), toy_model(), {})
    message = r"stage_1 could not be written \(.* free .*File too large.*: make room and go on with --resume"
    with no_file_beyond(900), pytest.raises(CheckpointError, match=message):
        checkpoints.save_stage(Position(1, 6, 12), toy_model(), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "stage_0"]


def test_a_rank_that_is_gone_is_not_taken_for_a_full_disk(world: World, tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "half").write_text("written")
        raise RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:5296")

    with pytest.raises(RuntimeError, match="closed by peer"):
        publish(world, tmp_path, "step_1", write, {})
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder_is_a_clear_error(world: World, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "checkpoints").write_text("a file where a folder should be")
    with pytest.raises(CheckpointError, match="could not be written"):
        start(toy_run(engine={"save_every": 2}), tmp_path / "out", world)


def test_differences_are_dotted() -> None:
    saved = {"a": {"b": [1, {"c": 2}]}, "gone": 1}
    own = {"a": {"b": [1, {"c": 3}]}, "new": None}
    assert differences(saved, own) == [
        "a.b[1].c: 2 was saved, this run has 3",
        "gone: 1 was saved, this run has None",
    ]
