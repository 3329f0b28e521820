"""What a data worker does: prepare one rank's whole step.

The step's draws come as an order; which samples they are follows from arithmetic, so that any
worker on any rank makes the same step of the same order.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from janus_plugins.core.blame import line_of
from janus_plugins.core.errors import BadSample, JanusPluginsError
from janus_plugins.core.plan import RunPlan
from janus_plugins.core.schema import StageBlock
from janus_plugins.data.mixture import Draws
from janus_plugins.data.order import key_of, permuted
from janus_plugins.data.prepare import Preparer
from janus_plugins.data.sources import is_streaming
from janus_plugins.sequence.assemble import Prepared, assemble, assemble_items
from janus_plugins.sequence.batch import Batch
from janus_plugins.sequence.packing import pack

if TYPE_CHECKING:
    from janus_plugins.core.contracts import Arrays
    from janus_plugins.sequence.tokenizers import TextTokenizer


_LOOKS = 1.0
"""Seconds between looks at the process that a worker belongs to."""


@dataclass(frozen=True)
class BadRecord:
    """Name a sample that was skipped, for the quarantine file."""

    key: str
    reason: str
    source: str


@dataclass(frozen=True)
class StepOrder:
    """Tell a worker what to prepare.

    Attributes:
        step: the step's number.
        draws: what the whole step draws, over all ranks.
        rows: of sources read in order, this rank's rows by position.
    """

    step: int
    draws: tuple[Draws, ...]
    rows: Mapping[str, Mapping[int, Any]] = field(default_factory=dict)

    def slice(self, rank: int, world: int) -> list[tuple[str, int]]:
        """Return a rank's (source, position) pairs; every rank gets its part of each task."""
        pairs = [
            (draw.source, position)
            for draw in self.draws
            for position in range(draw.first, draw.first + draw.count)
        ]
        return pairs[rank::world]


@dataclass(frozen=True)
class RankStep:
    """Hold one rank's prepared step; see `loader.StepBatch`."""

    step: int
    micro: tuple[Batch, ...]
    bad: tuple[BadRecord, ...]
    slots: int
    tokens: int


class StepDataset:
    """Be the DataLoader's dataset: an order in, a prepared step out.

    Args:
        plan: the run.
        tokenizer: the run's tokenizer.
        stage: the stage.
        sources: the opened sources that the stage draws from.
        rank: this process's rank.
        world: number of ranks.
    """

    def __init__(
        self,
        plan: RunPlan,
        tokenizer: TextTokenizer,
        stage: StageBlock,
        sources: Mapping[str, Any],
        rank: int,
        world: int,
    ) -> None:
        self._plan, self._stage, self._sources = plan, stage, sources
        self._rank, self._world = rank, world
        self._preparer = Preparer(plan, tokenizer, stage)

    def __getitem__(self, order: StepOrder) -> RankStep | JanusPluginsError:
        """Return the step, or the error that the main process must raise."""
        try:
            return self._items_step(order) if self._stage.reconstruct else self._packed_step(order)
        except JanusPluginsError as error:
            return error

    def _packed_step(self, order: StepOrder) -> RankStep:
        bad: list[BadRecord] = []
        samples: list[Prepared] = list(self._prepared(order, bad))
        rows = [[samples[i] for i in row] for row in pack([len(s) for s in samples], self._stage.max_length)]
        rows.sort(key=lambda row: -sum(map(len, row)))  # rows of one micro-batch are padded to its longest
        micro = tuple(
            assemble(part, self._preparer.dummies, self._preparer.pad) for part in self._spread(rows)
        )
        return RankStep(
            order.step,
            micro,
            tuple(bad),
            slots=sum(batch.ids.numel() for batch in micro),
            tokens=sum(batch.num_tokens for batch in micro),
        )

    def _items_step(self, order: StepOrder) -> RankStep:
        bad: list[BadRecord] = []
        modality = str(self._stage.reconstruct)
        items: list[Arrays] = [one for many in self._prepared(order, bad) for one in many]
        length = self._plan.model.generation[modality].facts.tokens
        micro = tuple(
            assemble_items(modality, part, length, self._preparer.dummies, self._preparer.pad)
            for part in self._spread(items)
        )
        return RankStep(order.step, micro, tuple(bad), len(items) * length, len(items) * length)

    def _spread(self, parts: Sequence[Any]) -> list[Sequence[Any]]:
        """Cut a sequence into `engine.accumulate` runs whose lengths differ by at most one."""
        number = self._plan.run.engine.accumulate
        edges = [len(parts) * edge // number for edge in range(number + 1)]
        return [parts[edges[i] : edges[i + 1]] for i in range(number)]

    def _prepared(self, order: StepOrder, bad: list[BadRecord]) -> Iterator[Any]:
        """Yield what each sample became; one that cannot be used is recorded and left out."""
        for name, position in order.slice(self._rank, self._world):
            epoch, index = self._identity(name, position)
            key = f"{name}[{index}]"
            try:
                sample = self._sample(order, name, position, index)
                key = getattr(sample, "key", key)
                made = self._made(sample, name, epoch, index)
            except BadSample as error:
                bad.append(BadRecord(key, str(error), name))
            except JanusPluginsError:
                raise
            except Exception as error:  # one sample must never end a run; their rate does
                bad.append(BadRecord(key, f"{type(error).__name__}: {error}{line_of(error)}", name))
            else:
                yield made

    def _identity(self, name: str, position: int) -> tuple[int, int]:
        """Return the epoch and the index at a position; a source read in order has one long epoch."""
        source = self._sources[name]
        if is_streaming(source):
            return 0, position
        epoch, rest = divmod(position, len(source))
        return epoch, permuted(rest, len(source), self._key(name, epoch))

    def _sample(self, order: StepOrder, name: str, position: int, index: int) -> Any:
        source = self._sources[name]
        if is_streaming(source):
            return source.sample(order.rows[name][position], position)
        return source[index]

    def _made(self, sample: Any, name: str, epoch: int, index: int) -> Any:
        data = self._plan.data[name]
        if self._stage.reconstruct:
            return self._preparer.items(sample, data, self._stage.reconstruct)
        rng = np.random.Generator(np.random.PCG64(self._key(name, epoch, index)))
        return self._preparer.prepare(sample, data, rng, index)

    def _key(self, *parts: object) -> int:
        return key_of(self._plan.run.seed, self._stage.name, *parts)


def start_worker(_: int) -> None:
    """Set up a data worker: signals are the main process's business, which saves and then stops it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent, os.getppid()), daemon=True).start()


def _end_with(owner: Any, parent: int) -> None:
    """End this process soon after the one that it works for, however that died.

    torch's own end of a worker first waits until a pipe is read that nobody reads any more.

    Args:
        owner: the process that it works for; of a forked one that is seen late while sisters hold its pipe.
        parent: the process that started it: the same one, or a server of forks, which ends with it.
    """
    while os.getppid() == parent and owner.is_alive():
        time.sleep(_LOOKS)
    os._exit(1)
