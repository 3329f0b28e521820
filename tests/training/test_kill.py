"""Killed at random moments, in the middle of a save too, a run ends like one that was left alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from janus_plugins.training.world import World

from .killed import long_run
from .runs import assert_same, losses, start, weights

PACKAGE = __package__ or "training"
ROOT = Path(__file__).parents[PACKAGE.count(".") + 1]


def child(out: Path, zero_stage: int, how: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", f"{PACKAGE}.killed", str(out), str(zero_stage), how]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # nohup's way would be inherited
    )  # fmt: skip


def wait_for_checkpoint(out: Path, process: subprocess.Popen[str]) -> None:
    """Wait until the process has something to lose: a checkpoint that is not from before."""
    before = time.time()
    while process.poll() is None and time.time() - before < 60:
        marks = [path.stat().st_mtime for path in (out / "checkpoints").glob("latest")]
        if marks and max(marks) > before:
            return
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_killed_at_random_moments(zero_stage: int, world: World, tmp_path: Path) -> None:
    draw, out, how = random.Random(zero_stage), tmp_path / "killed", "fresh"
    kills = 0
    while True:
        process = child(out, zero_stage, how)
        wait_for_checkpoint(out, process)
        try:
            said, _ = process.communicate(timeout=draw.uniform(0, 0.4))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            said, _ = process.communicate()
            kills += 1
        else:
            assert process.returncode == 0, said
            break
        how = "resume" if (out / "checkpoints" / "latest").exists() else "fresh"
        assert kills < 40, "no progress"
    assert kills >= 2, "the run was never killed; the test shows nothing"
    start(long_run(zero_stage), tmp_path / "whole", world)
    assert losses(out) == losses(tmp_path / "whole")
    for stage in (0, 1):
        assert_same(weights(out, stage), weights(tmp_path / "whole", stage))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_the_process_with_its_code_after_saving(
    number: int, code: int, world: World, tmp_path: Path
) -> None:
    process = child(tmp_path / "out", 2, "fresh")
    wait_for_checkpoint(tmp_path / "out", process)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == code, said
    start(long_run(2), tmp_path / "out", world, resume=True)
    start(long_run(2), tmp_path / "whole", world)
    assert losses(tmp_path / "out") == losses(tmp_path / "whole")
