"""A component's tiny model on two ranks under ZeRO-3, each rank in turn without its modality.

A rank that skipped a module would leave the other waiting for its parameters for ever. As a script:
one of the two ranks, under a launcher's variables; its argument is the folder that holds the case.
"""

from __future__ import annotations

import io
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from janus_plugins.testing.case import Case

RANKS = 2
STEPS = 2
PATIENCE = 240.0
"""Seconds until two ranks that wait for one another are given up."""


def train_two_ranks(case: Case) -> str:
    """Train on two ranks; return what went wrong, or nothing."""
    with TemporaryDirectory() as folder:
        request = (case.spec, case.config, dict(case.options), case.path, case.neighbour, case.given)
        (Path(folder) / "case.pickle").write_bytes(pickle.dumps(request))
        processes = [_start(folder, rank, port) for port in [_free_port()] for rank in range(RANKS)]
        try:
            said = [process.communicate(timeout=PATIENCE)[0] for process in processes]
        except subprocess.TimeoutExpired:
            return f"no end after {PATIENCE:.0f} s: the ranks wait for one another"
        finally:
            for process in processes:
                process.kill()
    failed = [text for process, text in zip(processes, said, strict=True) if process.returncode]
    return " ".join(failed[0].split()[-60:]) if failed else ""


def _start(folder: str, rank: int, port: int) -> subprocess.Popen[str]:
    variables = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(RANKS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "janus_plugins.testing.ranks", folder],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank(folder: Path) -> None:
    """Be one rank: take two steps, with the modality in one of them."""
    from rich.console import Console

    from janus_plugins.training.run import run_recipe
    from janus_plugins.training.world import close_world, open_world

    # Written a moment ago by `train_two_ranks`, in a folder of its own.
    spec, config, options, path, neighbour, given = pickle.loads((folder / "case.pickle").read_bytes())
    world = open_world()
    case = Case(spec, config, options, path, neighbour, given)
    run_recipe(_recipe(case), folder / "out", world, console=Console(file=io.StringIO()))
    close_world()


def _recipe(case: Case) -> Any:
    from janus_plugins.core.schema import EngineBlock, StageBlock
    from janus_plugins.testing.tiny_model import RATE, TinyModel
    from janus_plugins.training.recipe import Recipe

    tiny = TinyModel(case)
    frozen = {part.encoder.address for part in tiny.plan.model.generation.values()}
    learnt = [address for address in tiny.plan.model.addresses() if address not in frozen]
    names = [name for name, _ in tiny.model.named_parameters()]  # tied ones once
    rates = {part: RATE for part in learnt if any(name.startswith(f"{part}.") for name in names)}
    stage = StageBlock(
        name="check", learn=rates, mix={"text": 1}, steps=STEPS, batch=RANKS, max_length=256, loss_mean="task"
    )
    engine = EngineBlock(deepspeed={"zero_optimization": {"stage": 3}})
    return Recipe(
        stages=(stage,),
        engine=engine,
        seed=0,
        build=lambda weights: TinyModel(case).model,
        loader=lambda stage, world, state: _steps(tiny, world.rank),
        encoders=tuple(address for address in tiny.plan.model.addresses() if address.endswith(".encoder")),
    )


def _steps(tiny: Any, rank: int) -> Iterator[Any]:
    from janus_plugins.data.loader import StepBatch

    for step in range(STEPS):
        batch = tiny.present() if (step + rank) % RANKS else tiny.absent()
        yield StepBatch(step, (batch,), (), {}, slots=batch.ids.numel(), tokens=batch.num_tokens)


if __name__ == "__main__":
    rank(Path(sys.argv[1]))
