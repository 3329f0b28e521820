"""The steps of a stage, prepared in data workers, resumable at every step."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from janus_plugins.core.errors import DataError, JanusPluginsError
from janus_plugins.core.plan import RunPlan
from janus_plugins.core.schema import StageBlock
from janus_plugins.data.mixture import Draws, MixState, stage_mixture, stage_sources
from janus_plugins.data.sources import is_streaming, open_source, size_of
from janus_plugins.data.watch import prepared_steps
from janus_plugins.data.worker import BadRecord, StepDataset, StepOrder, start_worker
from janus_plugins.sequence.batch import Batch

if TYPE_CHECKING:
    from janus_plugins.sequence.tokenizers import TextTokenizer

__all__ = ["BadRecord", "StepBatch", "StepLoader"]


@dataclass(frozen=True)
class StepBatch:
    """Hold one rank's share of one optimiser step.

    Attributes:
        step: the step's number, from 0.
        micro: its micro-batches, exactly `engine.accumulate`.
        bad: samples that were skipped.
        state: plain data; a new loader that gets it goes on with the step after this one.
        slots: slots of the micro-batches, padding included.
        tokens: slots that belong to a sample.
    """

    step: int
    micro: tuple[Batch, ...]
    bad: tuple[BadRecord, ...]
    state: dict[str, Any]
    slots: int
    tokens: int


class StepLoader:
    """Yield the steps of a stage.

    The order depends on the seed, the stage's name and the sources alone. Sources read by index are
    read in data workers; sources read in order are read here, every rank reading all rows and
    keeping its own.

    Args:
        plan: the run.
        tokenizer: the run's tokenizer.
        stage: the stage.
        rank: this process's rank.
        world: number of ranks.
        state: a `StepBatch.state`, to go on after that step.

    Raises:
        DataError: a source cannot be opened, or is not the one that the state was written with.
    """

    def __init__(
        self,
        plan: RunPlan,
        tokenizer: TextTokenizer,
        stage: StageBlock,
        *,
        rank: int = 0,
        world: int = 1,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self._plan, self._stage = plan, stage
        self._rank, self._world = rank, world
        self._sources = {name: open_source(plan.data[name].part) for name in stage_sources(plan, stage)}
        self._sizes = {name: size_of(name, source) for name, source in self._sources.items()}
        self._mixture = stage_mixture(plan, stage, self._sizes)
        self._dataset = StepDataset(plan, tokenizer, stage, self._sources, rank, world)
        self._state = self._fresh() if state is None else self._checked(state)

    def __iter__(self) -> Iterator[StepBatch]:
        """Yield every step that is left.

        Raises:
            DataError: a worker died or did not answer in time, or a source cannot be read further.
        """
        states: dict[int, dict[str, Any]] = {}
        engine = self._plan.run.engine
        loader = self._loader(self._orders(states))
        for made in prepared_steps(loader, engine.workers, engine.data_timeout):
            self._state = states.pop(made.step)
            yield StepBatch(made.step, made.micro, made.bad, self._state, made.slots, made.tokens)

    def _fresh(self) -> dict[str, Any]:
        return {
            "seed": self._plan.run.seed,
            "stage": self._stage.name,
            "sizes": self._sizes,
            "mix": MixState().plain(),
            "rows": {},
        }

    def _checked(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Refuse a state that was written with another seed, stage or data."""
        fresh = self._fresh()
        for name in ("seed", "stage", "sizes"):
            if state.get(name) != fresh[name]:
                raise DataError(
                    f"the data position was saved with {name} {state.get(name)!r}, but this run has "
                    f"{fresh[name]!r}; restore the run file and the data, or move the step_* checkpoints "
                    "away and resume: the stage then begins anew"
                )
        return dict(state)

    def _orders(self, states: dict[int, dict[str, Any]]) -> Iterator[StepOrder]:
        """Yield each step's order, and note the state after it. Runs ahead of what is yielded."""
        before = self._state
        mix = MixState.read(before["mix"])
        positions = dict(before["rows"])
        readers: dict[str, Iterator[tuple[Any, Mapping[str, Any]]]] = {}
        while mix.step < self._stage.last_step:
            step = mix.step
            draws, mix = self._mixture.draw(mix)
            rows: dict[str, dict[int, Any]] = {}
            order = StepOrder(step, draws, rows)
            mine = set(order.slice(self._rank, self._world))
            for draw in draws:
                if self._sizes[draw.source] is None:
                    self._read(draw, mine, readers, positions, rows)
            states[step] = {**before, "mix": mix.plain(), "rows": dict(positions)}
            yield order

    def _read(
        self,
        draw: Draws,
        mine: set[tuple[str, int]],
        readers: dict[str, Iterator[tuple[Any, Mapping[str, Any]]]],
        positions: dict[str, Any],
        rows: dict[str, dict[int, Any]],
    ) -> None:
        """Read a draw's rows in order; keep those of this rank, and the position after them."""
        name = draw.source
        source = self._sources[name]
        assert is_streaming(source)
        if name not in readers:
            readers[name] = source.rows(positions.get(name))
        for position in range(draw.first, draw.first + draw.count):
            row, positions[name] = _next_row(name, readers[name])
            if (name, position) in mine:
                rows.setdefault(name, {})[position] = row

    def _loader(self, orders: Iterator[StepOrder]) -> Any:
        from torch import Generator
        from torch.utils.data import DataLoader

        from janus_plugins.data.parcel import pack

        engine = self._plan.run.engine
        options: dict[str, Any] = {}
        if engine.workers:
            # A forked worker shares the opened sources; tokenizers' threads would not survive it.
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
            fork = "fork" in multiprocessing.get_all_start_methods()
            options = {
                "multiprocessing_context": "fork" if fork else None,
                "worker_init_fn": start_worker,
            }
        return DataLoader(
            self._dataset,  # type: ignore[arg-type]
            sampler=orders,
            batch_size=None,
            num_workers=engine.workers,
            collate_fn=pack if engine.workers else _unchanged,
            generator=Generator().manual_seed(0),  # else it would draw from torch's global generator
            **options,
        )


def _unchanged(step: Any) -> Any:
    return step


def _next_row(name: str, reader: Iterator[tuple[Any, Mapping[str, Any]]]) -> tuple[Any, Mapping[str, Any]]:
    try:
        return next(reader)
    except JanusPluginsError:
        raise
    except StopIteration:
        raise DataError(f"data.{name} has no rows; check its path, split and filters") from None
    except Exception as error:
        raise DataError(f"data.{name} cannot be read further: {type(error).__name__}: {error}") from error
