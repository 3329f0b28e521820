"""A component's tiny model on two ranks under ZeRO-3, each rank in turn without its modality.

A rank that skipped a module would leave the other waiting for its parameters for ever. As a script:
one of the two ranks, under a launcher's variables; its argument is the folder that holds the case.
"""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import time
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
        store = _meeting_point()
        processes = [_start(Path(folder), rank, store.port) for rank in range(RANKS)]
        try:
            end = time.monotonic() + PATIENCE
            while any(process.poll() is None for process in processes) and time.monotonic() < end:
                time.sleep(0.1)
            codes = [process.poll() for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        problems = [
            f"rank {rank} (exit status {code}): {_said(Path(folder), rank)}"
            for rank, code in enumerate(codes)
            if code
        ]
    if None in codes:
        problems.append(f"no end after {PATIENCE:.0f} s: the ranks wait for one another")
    return "; ".join(problems)


def _meeting_point() -> Any:
    """Return a store that both ranks join; its port is taken from here on, so no other process gets it."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def _said(folder: Path, rank: int) -> str:
    return " ".join(_log(folder, rank).read_text(errors="replace").split()[-60:])


def _log(folder: Path, rank: int) -> Path:
    # A file, as a rank that fills a pipe would wait for its reader, and the other rank for it.
    return folder / f"rank{rank}.log"


def _start(folder: Path, rank: int, port: int) -> subprocess.Popen[bytes]:
    variables = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(RANKS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the ranks join a store, rank 0 starts none
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    with _log(folder, rank).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "janus_plugins.testing.ranks", str(folder)],
            env={**os.environ, **variables},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


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
