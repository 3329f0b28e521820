"""One run for one folder; random numbers that go on; one process that needs no launcher."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from janus_plugins.core.errors import CheckpointError, RunFileError
from janus_plugins.training import random_state
from janus_plugins.training.checkpoint import Checkpoints, Position
from janus_plugins.training.guard import StopSignals, locked
from janus_plugins.training.world import World, open_world

from .toys import toy_model

HOLD = (
    "import sys, time; from pathlib import Path; from janus_plugins.training.guard import locked\n"
    + textwrap.dedent(
        """
    with locked(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(60)
    """
    )
)


def test_a_second_run_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder, holder.stdout:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunFileError, match=f"in use by process {holder.pid} on "), locked(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
    with locked(tmp_path):
        assert f"process {os.getpid()}" in (tmp_path / ".lock").read_text()


def test_a_full_disk_is_told_with_the_folder(tmp_path: Path, no_file_beyond: Any) -> None:
    told = pytest.raises(CheckpointError, match=rf"{tmp_path} cannot be written: .* --out")
    with no_file_beyond(0), told, locked(tmp_path):
        pass


def test_a_run_whose_folder_became_anothers_leaves_it_alone(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with locked(out) as check:
        checkpoints = Checkpoints(out / "checkpoints", world, {}, 2, check)
        checkpoints.save_stage(Position(0, 1, 1), toy_model(), {})
        shutil.rmtree(out)
        checkpoints.save_stage(Position(1, 1, 2), toy_model(), {})  # nobody else is there
        shutil.rmtree(out)
        holder = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True)
        assert holder.stdout is not None
        with holder, holder.stdout:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(CheckpointError, match="was removed and is another run's now"):
                checkpoints.save_stage(Position(2, 1, 3), toy_model(), {})
            holder.kill()
    assert [path.name for path in out.iterdir()] == [".lock"]


def draws() -> list[float]:
    normal = random.gauss(0, 1), np.random.standard_normal(), torch.randn(()).item()
    return [*normal, random.random(), np.random.rand(), torch.rand(()).item()]


def test_random_state_goes_on_exactly(tmp_path: Path) -> None:
    random_state.seed_all(1, "stage", 0)
    random.gauss(0, 1), np.random.standard_normal()  # leave half a pair behind in both
    random_state.save_state(tmp_path / "state.safetensors")
    expected = draws()
    draws()
    random_state.load_state(tmp_path / "state.safetensors")
    assert draws() == expected


def test_undisturbed_puts_everything_back() -> None:
    random_state.seed_all(1)
    expected = draws()
    random_state.seed_all(1)
    with random_state.undisturbed():
        draws()
    assert draws() == expected


def test_seeds_differ_by_every_part() -> None:
    seen = set()
    for parts in ((1, "a", 0), (1, "a", 1), (1, "b", 0), (2, "a", 0)):
        random_state.seed_all(*parts)
        seen.add(tuple(draws()))
    assert len(seen) == 4


def test_a_lone_process_needs_no_launcher_and_leaves_no_variables(world: World) -> None:
    assert (world.rank, world.size, world.is_main) == (0, 1, True)
    assert not {"RANK", "WORLD_SIZE", "MASTER_PORT"} & set(os.environ)


def test_half_a_launcher_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(
        RunFileError, match="sets RANK, LOCAL_RANK but not WORLD_SIZE, MASTER_ADDR, MASTER_PORT"
    ):
        open_world()


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    return codes


def test_only_the_same_signal_again_ends_at_once(exits: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("janus_plugins.training.guard.time.monotonic", lambda: now[0])
    signals = StopSignals()
    with signals.watching():
        for number, after in ((signal.SIGINT, 0.0), (signal.SIGTERM, 0.1), (signal.SIGINT, 0.5)):
            now[0] = 100.0 + after
            signal.raise_signal(number)
        now[0] = 110.0
        signal.raise_signal(signal.SIGTERM)  # a launcher's, of the same Ctrl-C
        assert (signals.received, exits) == (signal.SIGINT, [])
        signal.raise_signal(signal.SIGINT)
        assert exits == [130]


def test_a_handler_that_python_did_not_set_is_not_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    put: list[Any] = []  # signal.signal answers None of such a handler
    monkeypatch.setattr(signal, "signal", lambda number, handler: put.append(handler))
    with StopSignals().watching():
        pass
    assert put
    assert None not in put


def test_in_another_thread_signals_stay_with_the_process():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def watch() -> int:
        with StopSignals().watching() as signals:
            assert {number: signal.getsignal(number) for number in before} == before
            return signals.received

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(watch).result() == 0
