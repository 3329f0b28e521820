"""Steps whose loss or gradient was not finite: count them, and stop when there are too many in a row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from janus_plugins.core.errors import CheckpointError, NonFiniteError
from janus_plugins.model.tensor_file import write_tensors
from janus_plugins.sequence.batch import Batch


class BadSteps:
    """Count skipped steps, in a row and altogether.

    Attributes:
        total: steps skipped since the run began.
        in_a_row: steps skipped since the last good one.
    """

    def __init__(self, limit: int, folder: Path, total: int = 0, in_a_row: int = 0) -> None:
        self._limit, self._folder = limit, folder
        self.total, self.in_a_row = total, in_a_row

    def note(
        self,
        applied: bool,
        step: int,
        rank: int,
        micro: Sequence[Batch],
        where: Callable[[], str] | None = None,
    ) -> None:
        """Take note of a step, and stop the run at the limit with its batch saved.

        Args:
            applied: whether it changed parameters.
            step: its number.
            rank: this rank.
            micro: its micro-batches here.
            where: called at the limit, on every rank: says what of the step was the first not finite.

        Raises:
            NonFiniteError: `engine.nonfinite_limit` steps in a row were skipped.
            CheckpointError: so they were, and the batch cannot be written.
        """
        if applied:
            self.in_a_row = 0
            return
        self.total += 1
        self.in_a_row += 1
        if self.in_a_row >= self._limit:
            path = self._folder / f"step_{step}_rank_{rank}.safetensors"
            what = (
                f"loss or gradient was not finite in {self.in_a_row} steps in a row, up to step {step} "
                f"(engine.nonfinite_limit: {self._limit}); no parameter was changed by them. "
                f"{f'In the last one {where()}. ' if where else ''}The last batch"
            )
            try:
                save_batch(micro, path)
            except OSError as error:
                raise CheckpointError(
                    f"{what} cannot be written to {path}: {error}; make room and go on with --resume, or "
                    "lower the learning rate"
                ) from error
            raise NonFiniteError(
                f"{what} is in {path.parent}; lower the learning rate, or look for broken samples in it"
            )


def save_batch(micro: Sequence[Batch], path: Path) -> None:
    """Write every tensor of a step's micro-batches to a safetensors file, named by its place.

    Raises:
        OSError: the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().cpu().clone().contiguous()
        for index, batch in enumerate(micro)
        for name, tensor in _tensors(batch, f"micro_{index}")
    }
    write_tensors(tensors, path)


def _tensors(value: object, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _tensors(inner, f"{name}.{key}")
    elif isinstance(value, tuple):
        for index, inner in enumerate(value):
            yield from _tensors(inner, f"{name}.{index}")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for spec in dataclasses.fields(value):
            yield from _tensors(getattr(value, spec.name), f"{name}.{spec.name}")
