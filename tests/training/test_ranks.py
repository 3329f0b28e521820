"""Two ranks that see different modalities do not hang, and train as one rank that sees both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch.distributed import DistBackendError, DistNetworkError, TCPStore

from janus_plugins.core.blame import blamed
from janus_plugins.core.peers import is_lost_peer
from janus_plugins.training.metrics import read_metrics
from janus_plugins.training.world import World

from .mixed import run_mixed
from .runs import assert_same, losses, weights

TESTS = Path(__file__).parents[1]


@contextmanager
def launched(size: int) -> Iterator[list[dict[str, str]]]:
    """Give each rank's environment, as `torchrun` does: they meet at a store of ours, whose port is taken."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": "1",
    }
    yield [{**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
    del store


def launch(size: int, *arguments: str, module: str = "mixed", code: int = 0) -> None:
    """Start `size` ranks of a script of this folder with a launcher's variables, and wait for them."""
    package = __package__ or "training"
    root = Path(__file__).parents[package.count(".") + 1]
    command = [sys.executable, "-m", f"{package}.{module}", *arguments]
    with launched(size) as variables:
        processes = [
            subprocess.Popen(
                command,
                cwd=root,
                env=each,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for each in variables
        ]
        try:
            said = [process.communicate(timeout=200)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
    assert [process.returncode for process in processes] == [code] * size, "\n".join(said)
    assert said[1:] == [""] * (size - 1), "only the main rank prints"


GATHER = """
import os, signal, sys
from janus_plugins import cli
from janus_plugins.training.world import open_world

def app(standalone_mode):
    world = open_world()
    world.barrier()
    if world.rank == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    world.gather(world.rank)

cli.app = app
cli.main()
"""


@pytest.mark.parametrize("killed", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_who_is_left_when_a_rank_is_killed_says_so(killed: int) -> None:
    with launched(2) as variables:
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", GATHER, str(killed)],
                env=each,
                stderr=subprocess.PIPE,
                text=True,
            )
            for each in variables
        ]
        said = [process.communicate(timeout=100)[1] for process in processes]
    assert [process.returncode for process in processes] == ([-9, 1] if killed == 0 else [1, -9])
    assert "error: another rank has ended" in said[1 - killed]
    assert "on with --resume" in said[1 - killed]
    assert "this is a bug" not in said[1 - killed]


ALONE = """
import sys, torch
from janus_plugins import cli
from janus_plugins.core.errors import CheckpointError
from janus_plugins.training.world import open_world

class Own(CheckpointError):  # a plugin's error, made of other things than one text
    def __init__(self, *, lacks):
        super().__init__(f"no {lacks}")

def app(standalone_mode):
    world = open_world()
    def work():
        if world.rank == (sys.argv[1] != "main"):
            raise RuntimeError("out of memory") if sys.argv[1] == "memory" else Own(lacks="weights")
    if sys.argv[1] == "build":
        world.together(work)
    if sys.argv[1] == "main":
        world.from_main(work)
    with world.apart():
        work()
    world.barrier()

cli.app = app
cli.main()
"""


@pytest.mark.parametrize(
    ("what", "zero", "one"),
    [
        pytest.param("build", "error: rank 1: no weights\n", "", marks=pytest.mark.slow),
        ("main", "error: no weights\n", ""),
        ("step", "error: another rank has ended", "error on rank 1: no weights\n"),
        pytest.param(
            "memory",
            "error: another rank has ended",
            "error on rank 1: RuntimeError: out of memory\n",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_befalls_one_rank_alone_is_said(what: str, zero: str, one: str) -> None:
    with launched(2) as variables:
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", ALONE, what],
                env=each,
                stderr=subprocess.PIPE,
                text=True,
            )
            for each in variables
        ]
        said = [process.communicate(timeout=100)[1] for process in processes]
    code = 1 if what == "memory" else 4
    assert [process.returncode for process in processes] == [code if what in ("build", "main") else 1, code]
    for text, wanted in zip(said, (zero, one), strict=True):
        assert text.startswith(wanted) if wanted else not text


def test_a_plugin_is_not_blamed_for_a_rank_that_ends() -> None:
    error = RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:5296")
    with pytest.raises(RuntimeError, match="closed by peer"), blamed(cast(Any, None), "encoding"):
        raise error


def test_the_end_of_another_rank_is_told_from_other_errors() -> None:
    closed = "Connection closed by peer [127.0.0.1]:5296"
    remote = "remote process exited or there was a network error, NCCL version 2.27"
    store = "failed to recv, got 0 bytes"
    lost = [RuntimeError(f"[gloo/transport/tcp/pair.cc:561] {closed}"), DistBackendError(f"NCCL: {remote}")]
    assert all(map(is_lost_peer, [*lost, DistNetworkError(store)]))
    others = [
        RuntimeError(closed),
        RuntimeError("[gloo] Timed out waiting"),
        ConnectionResetError(f"gloo: {closed}"),
    ]
    assert not any(map(is_lost_peer, [*others, DistBackendError("NCCL: unhandled cuda error")]))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("tiny_run_file", TESTS / "tiny.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return Path(module.write_tiny(tmp_path_factory.mktemp("tiny")))


@pytest.mark.parametrize(
    "zero_stage", [2, *(pytest.param(other, marks=pytest.mark.slow) for other in (0, 1, 3))]
)
def test_ranks_with_different_modalities_equal_one_with_both(
    zero_stage: int, tiny: Path, world: World, tmp_path: Path
) -> None:
    launch(2, str(tiny), str(tmp_path / "two"), str(zero_stage))
    run_mixed(tiny, tmp_path / "one", zero_stage, world)
    two, one = read_metrics(tmp_path / "two"), read_metrics(tmp_path / "one")
    assert len(two) == len(one) == 4
    for theirs, ours in zip(two, one, strict=True):
        assert theirs["loss"].keys() == ours["loss"].keys() == {"text.text", "generation.image"}
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5)
        assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=1e-4)
    first, second = weights(tmp_path / "two", 0), weights(tmp_path / "one", 0)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.allclose(value, second[name], atol=2e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_a_bad_loss_on_one_rank_is_skipped_by_all(zero_stage: int, tmp_path: Path) -> None:
    launch(2, str(tmp_path), str(zero_stage), "nan", module="toy_ranks")
    lines = read_metrics(tmp_path)
    assert [line["applied"] for line in lines] == [True, True, False, True, True, True]
    assert all(torch.isfinite(value).all() for value in weights(tmp_path, 0).values())
    named = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert [(record["step"], record["key"]) for record in named] == [(5, "rank 0"), (5, "rank 1")]


@pytest.mark.slow
def test_a_signal_to_one_rank_saves_and_stops_all(tmp_path: Path) -> None:
    """And two ranks resume exactly, dropout of either rank included."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    launch(2, str(out), "3", "signal", module="toy_ranks", code=143)
    assert (out / "checkpoints" / "step_2" / "random_rank_1.safetensors").exists()
    launch(2, str(out), "3", "resume", module="toy_ranks")
    launch(2, str(whole), "3", "nothing", module="toy_ranks")
    assert losses(out) == losses(whole)
    assert_same(weights(out, 0), weights(whole, 0))


@pytest.mark.slow
def test_an_error_of_one_rank_stops_all(tmp_path: Path) -> None:
    launch(2, str(tmp_path), "2", "error", module="toy_ranks", code=1)
    assert (tmp_path / "rank_1.txt").read_text() == "the disk has gone away"
    assert (tmp_path / "rank_0.txt").read_text() == "rank 1 stopped: the disk has gone away"
