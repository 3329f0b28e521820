"""Prepared samples in rows become one typed batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from janus_plugins.core.blame import full_name
from janus_plugins.core.errors import BadSample, DataError
from janus_plugins.core.samples import TASKS
from janus_plugins.sequence.batch import Batch, ItemBatch
from janus_plugins.sequence.layout import SequencePlan
from janus_plugins.sequence.line import NO_TARGET, ItemSpan, Path
from janus_plugins.sequence.packing import packed_plan

if TYPE_CHECKING:
    from torch import Tensor

    from janus_plugins.core.contracts import Arrays
    from janus_plugins.core.plan import Part


PRECOMPUTED = "precomputed"
"""The one array of an item that its encoder has answered already: codes [T] or [T, Q], or vectors [T, C]."""


@dataclass(frozen=True)
class Prepared:
    """Hold one sample ready to be packed: its line of tokens and its processed items.

    Attributes:
        plan: where its tokens lie.
        items: the arrays of each item.
        entering: what an encoder makes of each item, in features, codes or latents.
    """

    plan: SequencePlan
    items: tuple[Arrays, ...] = ()
    entering: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.plan)


@dataclass(frozen=True)
class Dummies:
    """Hold what stands in for absent modalities.

    Attributes:
        understanding: modality -> the processor's dummy item, one for every understanding path.
        generation: modality -> the same for every generation path.
        lengths: (path, modality) -> slots that the dummy takes.
        entering: understanding modality -> features that its encoder makes of the dummy.
    """

    understanding: Mapping[str, Arrays] = field(default_factory=dict)
    generation: Mapping[str, Arrays] = field(default_factory=dict)
    lengths: Mapping[tuple[Path, str], int] = field(default_factory=dict)
    entering: Mapping[str, int] = field(default_factory=dict)


def assemble(rows: Sequence[Sequence[Prepared]], dummies: Dummies, pad: int) -> Batch:
    """Lay packed rows out as one batch; rows are padded to the longest.

    Args:
        rows: the samples of each row, in order. No rows at all give one slot of padding.
        dummies: what stands in for modalities that no sample has.
        pad: id of padding.
    """
    import torch

    rows = rows or [()]
    width = max(1, *(sum(map(len, row)) for row in rows))
    ids = np.full((len(rows), width), pad, dtype=np.int64)
    positions = np.zeros((len(rows), width), dtype=np.int64)
    targets = np.full((len(rows), width), NO_TARGET, dtype=np.int64)
    tasks = np.zeros((len(rows), width), dtype=np.int64)
    for row, start, sample in _placed(rows):
        stop = start + len(sample)
        ids[row, start:stop] = sample.plan.ids
        positions[row, start:stop] = np.arange(len(sample))
        targets[row, start:stop] = sample.plan.text_targets
        tasks[row, start:stop] = TASKS.index(sample.plan.task)
    text_at = np.flatnonzero(targets != NO_TARGET)
    found = _found(rows, width)
    return Batch(
        ids=torch.from_numpy(ids),
        positions=torch.from_numpy(positions),
        packed=packed_plan(
            [[len(sample) for sample in row] for row in rows],
            width,
            [[sample.plan.reach for sample in row] for row in rows],
        ),
        text_at=torch.from_numpy(text_at),
        text_targets=torch.from_numpy(targets.ravel()[text_at]),
        text_tasks=torch.from_numpy(tasks.ravel()[text_at]),
        understanding={
            name: _understood(found.get(("understanding", name)), dummy, dummies, name)
            for name, dummy in dummies.understanding.items()
        },
        generation={
            name: _generated(found.get(("generation", name)), dummy, dummies, name)
            for name, dummy in dummies.generation.items()
        },
        tasks=TASKS,
        num_samples=_count(sample.plan.task for row in rows for sample in row),
        num_tokens=sum(len(sample) for row in rows for sample in row),
    )


def assemble_items(modality: str, arrays: Sequence[Arrays], length: int, dummies: Dummies, pad: int) -> Batch:
    """Make a batch of items alone, a sample each, for a generation encoder's own loss; its rows are empty.

    Args:
        modality: whose items they are.
        arrays: the processed items; none gives the dummy.
        length: tokens of one item.
        dummies: what stands in for every other path.
        pad: id of padding.
    """
    batch = assemble((), dummies, pad)
    if not arrays:
        return batch
    items = replace(
        batch.generation[modality],
        items=collate_items(list(arrays)),
        lengths=(length,) * len(arrays),
        absent=False,
    )
    counted = {"reconstruct": len(arrays)}
    return replace(batch, generation={**batch.generation, modality: items}, num_samples=counted)


def finite(arrays: Arrays, part: Part | None = None) -> Arrays:
    """Return a processed item as it is; tensors, lists and numbers in it become arrays.

    Args:
        arrays: what a processor answered.
        part: the encoder whose it is, for messages.

    Raises:
        BadSample: it is no named arrays of numbers, or holds NaN or infinite values, which would spoil a step
            or an answer.
    """
    if not isinstance(arrays, Mapping):
        raise BadSample(f"{_whose(part)} answered a {type(arrays).__name__}, not named numpy arrays")
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        arrays = {name: _array(name, value, part) for name, value in arrays.items()}
    for name, array in arrays.items():
        if array.dtype.kind not in _NUMBERS:
            raise BadSample(f"{_whose(part)} answered {name} as an array of {array.dtype}, not of numbers")
        if array.dtype.kind != "f":
            continue
        with np.errstate(all="ignore"):  # a sum is a quick look; a long one may overflow
            if np.isfinite(array.sum()):
                continue
        wrong = int(array.size - np.isfinite(array).sum())
        if wrong:
            raise BadSample(f"{name} holds NaN or infinite values, {wrong} of {array.size}")
    return arrays


_NUMBERS = "biufc"
"""numpy's letters of what a tensor can hold."""


def _array(name: str, value: object, part: Part | None) -> np.ndarray:
    """Return what a processor answered as an array, where that is one of numbers."""
    problem = ""
    try:
        array = np.asarray(value)
        if array.dtype.kind in _NUMBERS:
            return array
    except (TypeError, ValueError, RuntimeError) as error:  # of a tensor on a device, or with a gradient
        problem = f": {error}"
    raise BadSample(f"{_whose(part)} answered {name} as a {type(value).__name__}, not a numpy array{problem}")


def _whose(part: Part | None) -> str:
    return f"the processor of {full_name(part)}" if part else "the processor"


def collate_items(arrays: list[Arrays]) -> dict[str, Tensor]:
    """Stack processed items: equal shapes to [N, ...].

    Where the first axis differs, shorter ones are padded with zeros and `<name>_lengths` [N] is added.

    Raises:
        DataError: items name different arrays, or differ in more than their first axis.
    """
    import torch

    names = list(arrays[0])
    for one in arrays:
        if list(one) != names:
            raise DataError(f"a processor returned arrays {list(one)} for one item and {names} for another")
    collated: dict[str, Tensor] = {}
    for name in names:
        values = [np.asarray(one[name]) for one in arrays]
        shapes = {value.shape for value in values}
        if len(shapes) == 1:
            collated[name] = torch.from_numpy(np.stack(values))
            continue
        if len({(value.ndim, value.shape[1:]) for value in values}) > 1 or values[0].ndim == 0:
            raise DataError(
                f"a processor returned {name!r} in shapes {sorted(shapes)}: only axis 0 may differ"
            )
        lengths = [len(value) for value in values]
        padded = np.zeros((len(values), max(lengths), *values[0].shape[1:]), dtype=values[0].dtype)
        for index, value in enumerate(values):
            padded[index, : len(value)] = value
        collated[name] = torch.from_numpy(padded)
        collated[f"{name}_lengths"] = torch.tensor(lengths, device="cpu")
    return collated


_Items = list[tuple[int, ItemSpan, Prepared]]
"""Flat slot of each item's sample, where the item lies in it, and the sample."""


def _placed(rows: Sequence[Sequence[Prepared]]) -> Iterator[tuple[int, int, Prepared]]:
    for row, samples in enumerate(rows):
        start = 0
        for sample in samples:
            yield row, start, sample
            start += len(sample)


def _found(rows: Sequence[Sequence[Prepared]], width: int) -> dict[tuple[Path, str], _Items]:
    found: dict[tuple[Path, str], _Items] = {}
    for row, start, sample in _placed(rows):
        for span in sample.plan.spans:
            found.setdefault((span.path, span.modality), []).append((row * width + start, span, sample))
    return found


def _understood(items: _Items | None, dummy: Arrays, dummies: Dummies, name: str) -> ItemBatch:
    import torch

    if not items:
        empty = torch.empty(0, dtype=torch.int64)
        length, enters = dummies.lengths["understanding", name], dummies.entering[name]
        return ItemBatch(collate_items([dummy]), (length,), empty, absent=True, entering=(enters,))
    at, lengths = _laid_out(items)
    entering = tuple(sample.entering[span.item] for _, span, sample in items)
    return ItemBatch(_collated(items), lengths, torch.from_numpy(at), entering=entering)


def _generated(items: _Items | None, dummy: Arrays, dummies: Dummies, name: str) -> ItemBatch:
    """Also plan the predictions: the slot before code t predicts code t, the begin token code 0.

    Where codes are predicted in blocks, it is the slot one block before.
    """
    import torch

    if not items:
        empty = torch.empty(0, dtype=torch.int64)
        length = dummies.lengths["generation", name]
        return ItemBatch(collate_items([dummy]), (length,), empty, empty, empty, absent=True)
    at, lengths = _laid_out(items)
    predict_at = np.concatenate(
        [span.blocks.predict_slots(span.length) + base + span.start for base, span, _ in items]
    )
    return ItemBatch(
        _collated(items),
        lengths,
        torch.from_numpy(at),
        predict_at=torch.from_numpy(predict_at),
        targets=torch.arange(len(predict_at)),
    )


def _laid_out(items: _Items) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return the flat slots of all items, item by item, and how many each of them has."""
    at = np.concatenate([np.arange(span.length) + base + span.start for base, span, _ in items])
    return at, tuple(span.length for _, span, _ in items)


def _collated(items: _Items) -> dict[str, Tensor]:
    return collate_items([sample.items[span.item] for _, span, sample in items])


def _count(tasks: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for task in tasks:
        counts[task] = counts.get(task, 0) + 1
    return counts
