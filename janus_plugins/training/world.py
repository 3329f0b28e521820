"""The processes of a run: who we are, and how we agree on something.

Launchers (`deepspeed`, `torchrun`, SLURM through either) set RANK and its companions; without a launcher
we are one process with a process group of its own, so that DeepSpeed never goes looking for MPI.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from janus_plugins.core.environment import switched_on
from janus_plugins.core.errors import Interrupted, JanusPluginsError, RunFileError
from janus_plugins.inference.halves import is_slow

T = TypeVar("T")

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
DEBUG_VARIABLE = "JANUS_PLUGINS_DEBUG"


@dataclass(frozen=True)
class World:
    """Say which process this is.

    Attributes:
        rank: number of this process over all nodes.
        size: number of processes.
        device: where this process computes.
        group: the process group that ranks agree over; None for the default one.
    """

    rank: int
    size: int
    device: torch.device
    group: Any = None

    @property
    def is_main(self) -> bool:
        """Answer whether this process prints and writes for all."""
        return self.rank == 0

    @property
    def multiplies_bf16(self) -> bool:
        """Answer whether the device has instructions for bf16; without them a CPU computes in fp32."""
        return not is_slow(torch.bfloat16, self.device)

    @property
    def works_aside(self) -> bool:
        """Answer whether the device works while the host goes on."""
        return self.device.type != "cpu"

    def is_idle(self) -> bool:
        """Answer whether the device has done all that it was given, as far as that can be asked."""
        return self.device.type != "cuda" or torch.cuda.current_stream(self.device).query()

    def collect_garbage(self) -> None:
        """Give back the memory of what holds itself and nobody else reaches, as a closed engine does."""
        gc.collect()
        if self.works_aside:
            torch.cuda.empty_cache()

    def gather(self, value: T) -> list[T]:
        """Return every rank's value, in the order of ranks. Collective; values are plain data."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier(group=self.group)

    def from_main(self, work: Callable[[], T]) -> T:
        """Run `work` on the main rank and return its plain answer on all; an error reaches all."""
        if self.size == 1:
            return work()
        outcome: tuple[Any, JanusPluginsError | None] = (None, None)
        if self.is_main:
            try:
                outcome = (work(), None)
            except JanusPluginsError as error:
                outcome = (None, retold(error))
        answer, problem = self.gather(outcome)[0]
        if problem is not None:
            raise problem
        return answer  # type: ignore[no-any-return]

    def together(self, work: Callable[[], T]) -> T:
        """Run `work`, which waits for no other rank, on all; the first rank's error reaches all."""
        if self.size == 1:
            return work()
        problem: JanusPluginsError | None = None
        try:
            made = work()
        except JanusPluginsError as error:
            problem = error
        for each in self.gather(None if problem is None else retold(problem, self.rank)):
            if each is not None:
                raise each from problem
        return made

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Mark an error of the body as one that the other ranks may not meet: every rank says its own."""
        try:
            yield
        except JanusPluginsError as error:
            error.of_one_rank = True
            raise


def retold(error: JanusPluginsError, rank: int = 0) -> JanusPluginsError:
    """Return an error as other ranks are told it: of a class of ours, which is made of one text."""
    ours = (each for each in type(error).__mro__ if each.__module__ == JanusPluginsError.__module__)
    kind = next(each for each in ours if each is not Interrupted)
    told: JanusPluginsError = kind(f"rank {rank}: {error}" if rank else str(error))
    told.exit_code = error.exit_code
    return told


def open_world() -> World:
    """Join the run's process group, starting one of a single process where no launcher did.

    Raises:
        RunFileError: a launcher set only some of its variables.
    """
    alone = refuse_half_launched()
    accelerated = torch.cuda.is_available()
    if not accelerated:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # DeepSpeed reads this one all the time; alone it starts nothing, should a child process inherit it.
    local = int(os.environ.setdefault("LOCAL_RANK", "0"))
    if accelerated:
        torch.cuda.set_device(local)
    _init_group("nccl" if accelerated else "gloo", alone=alone)
    if not accelerated:
        # Left to the interpreter's end, gloo's threads abort one process in five whose peer has died.
        atexit.register(close_world)
    device = torch.device("cuda", local) if accelerated else torch.device("cpu")
    return World(dist.get_rank(), dist.get_world_size(), device)


def refuse_half_launched() -> bool:
    """Answer whether this process was started without a launcher.

    Raises:
        RunFileError: a launcher set only some of its variables.
    """
    present = [name for name in LAUNCHER_VARIABLES if name in os.environ]
    missing = [name for name in LAUNCHER_VARIABLES if name not in os.environ]
    if missing and present not in ([], ["LOCAL_RANK"]):
        raise RunFileError(
            f"the environment sets {', '.join(present)} but not {', '.join(missing)}; start with `torchrun` "
            f"or `deepspeed`, or unset {', '.join(present)} to run in one process"
        )
    return bool(missing)


def _init_group(backend: str, alone: bool) -> None:
    import deepspeed

    if not switched_on(DEBUG_VARIABLE):
        deepspeed.utils.logger.setLevel(logging.ERROR)
    if alone and not dist.is_initialized():  # no port, and no variable that a child process would inherit
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    # DeepSpeed compiles a shared-memory all-reduce at its first start on a CPU (about a minute, and a
    # compiler is needed). Only its inference engine calls it; marking the op as not available skips it.
    # The table is made on first access, by running a compiler for every op; ours spares that too.
    vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)


def close_world() -> None:
    """Leave the process group, so that the interpreter ends without a warning."""
    if dist.is_initialized():
        dist.destroy_process_group()
