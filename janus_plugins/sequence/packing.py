"""Samples packed into rows, and the plan that keeps them from seeing one another."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from janus_plugins.core.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from janus_plugins.core.contracts import Packed


def pack(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Pack samples into rows by first-fit-decreasing.

    Deterministic: equal lengths go in their given order, a row lists its samples in that order, and
    rows are ordered by their first sample.

    Args:
        lengths: slots of each sample.
        max_length: slots of a row.

    Returns:
        For each row, the indices of its samples.

    Raises:
        DataError: a sample is longer than a row.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[index]
        if length > max_length:
            raise DataError(f"sample {index} takes {length} slots, more than a row's {max_length}")
        fit = next((row for row, left in enumerate(room) if left >= length), None)
        if fit is None:
            fit = len(rows)
            rows.append([])
            room.append(max_length)
        rows[fit].append(index)
        room[fit] -= length
    return sorted(sorted(row) for row in rows)


def packed_plan(
    rows: Sequence[Sequence[int]],
    row_length: int,
    reach: Sequence[Sequence[NDArray[np.int64] | None]] | None = None,
) -> Packed:
    """Plan the attention of packed rows: nothing across samples, causal within one unless `reach` says more.

    Args:
        rows: for each row, the lengths of its samples in order; the rest of the row is padding.
        row_length: slots of every row (S).
        reach: for each sample of each row, the last of its slots that each slot sees [length], or None
            where that is itself.
    """
    import torch

    from janus_plugins.core.contracts import Packed

    starts: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    edges = [0]
    for row, lengths in enumerate(rows):
        start = row * row_length
        for index, length in enumerate(lengths):
            seen = None if reach is None else reach[row][index]
            starts.setdefault((length, () if seen is None else tuple(seen.tolist())), []).append(start)
            start += length
            edges.append(start)
        end = (row + 1) * row_length
        assert start <= end, f"row {row} holds {start - row * row_length} slots, more than {row_length}"
        if start < end:
            edges.append(end)
    kinds = sorted(starts)
    groups = tuple(torch.tensor(starts[kind])[:, None] + torch.arange(kind[0]) for kind in kinds)
    patterns = tuple(torch.tensor(seen) if seen else None for _, seen in kinds)
    segments = [after - before for before, after in itertools.pairwise(edges)]
    return Packed(
        groups,
        torch.tensor(edges, dtype=torch.int32),
        max(segments, default=0),
        patterns if any(pattern is not None for pattern in patterns) else None,
    )
