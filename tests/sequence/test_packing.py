"""Packing: every sample once, no row too long, nothing seen across samples."""

from __future__ import annotations

import random

import pytest
import torch

from janus_plugins.core.contracts import Packed
from janus_plugins.core.errors import DataError
from janus_plugins.sequence.packing import pack, packed_plan


def visible(packed: Packed, slots: int) -> torch.Tensor:
    """Say which slot sees which, by the plan's groups [slots, slots]."""
    seen = torch.zeros(slots, slots, dtype=torch.bool)
    for group in packed.groups:
        for segment in group:
            for position, slot in enumerate(segment):
                seen[slot, segment[: position + 1]] = True
    return seen


def test_pack_holds_every_sample_once_within_the_row() -> None:
    rng = random.Random(0)
    for _ in range(50):
        lengths = [rng.randint(1, 40) for _ in range(rng.randint(0, 60))]
        rows = pack(lengths, 40)
        assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
        assert all(sum(lengths[index] for index in row) <= 40 for row in rows)
        assert len(rows) <= 11 / 9 * -(-sum(lengths) // 40) + 6 / 9 + 4  # near the bound of FFD
        assert rows == pack(lengths, 40)


def test_pack_fills_the_first_row_that_fits() -> None:
    assert pack([4, 7, 3, 6, 5], 10) == [[0, 3], [1, 2], [4]]
    assert pack([5, 5, 5, 5], 10) == [[0, 1], [2, 3]]
    assert pack([], 10) == []


def test_pack_refuses_what_fits_no_row() -> None:
    with pytest.raises(DataError, match="sample 1 takes 11 slots, more than a row's 10"):
        pack([3, 11], 10)


def test_no_slot_sees_another_sample_or_padding() -> None:
    rows, width = [[3, 2, 3], [5], [], [8]], 8
    packed = packed_plan(rows, width)
    owner = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3, -1, -1, -1, *[-2] * 8, *[4] * 8])
    index = torch.arange(32)
    expected = (owner[:, None] == owner) & (owner[:, None] >= 0) & (index[:, None] >= index)
    assert torch.equal(visible(packed, 32), expected)
    assert [tuple(group.shape) for group in packed.groups] == [(1, 2), (2, 3), (1, 5), (1, 8)]


def test_cu_seqlens_cover_every_slot_padding_included() -> None:
    packed = packed_plan([[3, 2], [5], []], 6)
    assert packed.cu_seqlens.tolist() == [0, 3, 5, 6, 11, 12, 18]
    assert packed.cu_seqlens.dtype == torch.int32
    assert packed.max_length == 6


def test_padding_alone() -> None:
    packed = packed_plan([[]], 1)
    assert packed.groups == ()
    assert (packed.cu_seqlens.tolist(), packed.max_length) == ([0, 1], 1)
