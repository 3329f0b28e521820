"""Codes in blocks: every code once, predicted by a slot that does not see it, in samples of any company."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import torch

from janus_plugins.core.contracts import Packed
from janus_plugins.core.samples import generation_sample, text_sample
from janus_plugins.core.schema import ParallelBlock
from janus_plugins.sequence.assemble import Prepared, assemble
from janus_plugins.sequence.blocks import PLAIN, Blocks, code_order, line_places, region_cuts
from janus_plugins.sequence.layout import SequencePlan, plan_sample
from janus_plugins.sequence.line import Spelling
from janus_plugins.sequence.packing import packed_plan

from .spell import spelling, stage
from .test_assemble import DUMMIES

GRIDS = [(4, 4), (24, 24), (6, 10), (2, 3, 4), (12,), (1, 6)]
EVERY = [
    (grid, block)
    for grid in GRIDS
    for block in range(1, math.prod(grid) + 1)
    if math.prod(grid) % block == 0 and block <= 64
]


@pytest.mark.parametrize("order", ["rows", "regions"])
@pytest.mark.parametrize(("grid", "block"), EVERY, ids=str)
def test_the_order_of_the_line_is_a_bijection(grid, block, order):
    line = code_order(grid, ParallelBlock(block=block, order=order))
    assert sorted(line.tolist()) == list(range(math.prod(grid)))
    assert np.array_equal(line[line_places(line)], np.arange(len(line)))
    assert np.array_equal(line_places(line)[line], np.arange(len(line)))
    if order == "rows":
        assert np.array_equal(line, np.arange(len(line)))


@pytest.mark.parametrize(("grid", "block"), EVERY, ids=str)
def test_a_block_takes_one_code_of_each_region(grid, block):
    line = code_order(grid, ParallelBlock(block=block, order="regions"))
    cuts = region_cuts(grid, block)
    assert math.prod(cuts) == block
    sides = [length // cut for length, cut in zip(grid, cuts, strict=True)]
    for codes in line.reshape(-1, block):
        places = np.array(np.unravel_index(codes, grid)).T
        assert len({tuple(place // sides) for place in places}) == block
        assert len({tuple(place % sides) for place in places}) == 1


def test_regions_of_the_reference_and_of_the_digits():
    assert region_cuts((24, 24), 16) == (4, 4)
    assert region_cuts((24, 24), 8) == (4, 2)
    line = code_order((4, 4), ParallelBlock(block=4, order="regions"))
    assert line.tolist() == [0, 2, 8, 10, 1, 3, 9, 11, 4, 6, 12, 14, 5, 7, 13, 15]
    assert code_order((2, 2), None).tolist() == [0, 1, 2, 3]


SHAPES = [(12, size, first) for size in (1, 2, 3, 4, 6, 12) for first in (0, 1, 2) if first * size < 12]


@pytest.mark.parametrize(("tokens", "size", "first"), SHAPES, ids=str)
def test_a_slot_never_sees_the_code_that_it_predicts(tokens, size, first):
    blocks = Blocks(size, first * size)
    slots = tokens + size - 1
    codes, asking = blocks.code_slots(slots), blocks.predict_slots(slots)
    assert len(codes) == len(asking) == tokens
    assert len(set(asking.tolist())) == tokens
    reach = blocks.reach(slots) - 1  # counted from the item's first slot, as the others
    passes = np.repeat(np.arange(len(blocks.passes(tokens))), blocks.passes(tokens))
    for code, at in enumerate(asking):
        seen = codes[codes <= reach[at + 1]]
        # exactly the codes of the passes before its own
        assert len(seen) == np.count_nonzero(passes < passes[code])
    assert sum(blocks.passes(tokens)) == tokens
    assert len(blocks.passes(tokens)) == first * size + tokens // size - first
    assert (reach >= np.arange(-1, slots)).all()


def test_plain_blocks_are_next_code_prediction():
    assert Blocks.of(None) == Blocks.of(ParallelBlock(block=1, sequential=3)) == PLAIN
    assert PLAIN.code_slots(5).tolist() == [0, 1, 2, 3, 4]
    assert PLAIN.predict_slots(5).tolist() == [-1, 0, 1, 2, 3]
    assert PLAIN.reach(5).tolist() == [0, 1, 2, 3, 4, 5]
    assert PLAIN.passes(3) == [1, 1, 1]


def in_blocks(size: int, first: int = 0) -> Spelling:
    plain = spelling("plain")
    return Spelling(plain.tokenizer, plain.template, plain.tokens_of, {"image": Blocks(size, first * size)})


def drawn(spelled: Spelling, prompt: str, tokens: int, **options: object) -> SequencePlan:
    size = spelled.blocks["image"].size
    sample = generation_sample(prompt, "image", 0, "k")
    return plan_sample(sample, [tokens + size - 1], spelled, stage(**options), np.random.default_rng(0))


@pytest.mark.parametrize(
    "options", [{}, {"drop_prompt": 1.0}, {"drop_prompt": 1.0, "drop_to": "pad"}], ids=str
)
@pytest.mark.parametrize("close", [False, True])
def test_a_sample_reaches_over_its_blocks_only(options, close):
    plan = drawn(in_blocks(2, 1), "four", 6, close_generated=close, **options)
    (span,) = plan.spans
    begin = span.start - 1
    assert span.length == 7
    assert len(plan) == span.start + 7 + 2 * close
    # begin, code 0, [code 1, start], [codes 2 and 3], [codes 4 and 5]
    inside = [begin, begin + 1, *(begin + at for at in (3, 3, 5, 5, 7, 7))]
    assert plan.reach.tolist() == [*range(begin), *inside, *range(begin + 8, len(plan))]
    text = plan_sample(text_sample("ab", "k"), [], in_blocks(2), stage(), np.random.default_rng(0))
    assert text.reach is None
    assert drawn(in_blocks(1), "four", 6).reach is None


def dense(packed: Packed, slots: int) -> torch.Tensor:
    """Return which flat slot sees which, as the plan says it."""
    seen = torch.zeros(slots, slots, dtype=torch.bool)
    for group, reach in zip(packed.groups, packed.reach or [None] * len(packed.groups), strict=True):
        last = torch.arange(group.shape[1]) if reach is None else reach
        for segment in group:
            for slot, end in zip(segment, last, strict=True):
                seen[slot, segment[: int(end) + 1]] = True
    return seen


def test_the_plan_of_random_packs_equals_a_mask_written_out():
    rng = random.Random(0)
    for trial in range(20):
        spelled = in_blocks(*rng.choice([(1, 0), (2, 0), (3, 1), (6, 0)]))
        rows = [
            [
                drawn(spelled, "x" * rng.randint(1, 3), 6)
                if rng.random() < 0.6
                else plan_sample(
                    text_sample("a" * rng.randint(1, 9), "k"), [], spelled, stage(), np.random.default_rng(0)
                )
                for _ in range(rng.randint(0, 3))
            ]
            for _ in range(3)
        ]
        width = max(1, *(sum(map(len, row)) for row in rows))
        expected = torch.zeros(3 * width, 3 * width, dtype=torch.bool)
        for row, plans in enumerate(rows):
            start = row * width
            for plan in plans:
                stop = start + len(plan)
                expected[start:stop, start:stop] = torch.ones(len(plan), len(plan), dtype=torch.bool).tril()
                for span in plan.spans:
                    size, alone = span.blocks.size, span.blocks.alone
                    first = start + span.start - 1 + alone
                    for at in range(first, start + span.start + span.length, size):
                        expected[at : at + size, at : at + size] = True
                start = stop
        lengths = [[len(plan) for plan in row] for row in rows]
        packed = packed_plan(lengths, width, [[plan.reach for plan in row] for row in rows])
        assert torch.equal(dense(packed, 3 * width), expected), trial
        moved = packed.to("cpu")
        assert torch.equal(dense(moved, 3 * width), expected)


def test_samples_alike_share_a_group_and_a_pattern():
    spelled = in_blocks(2)
    plans = [drawn(spelled, prompt, 4) for prompt in ("one", "two", "three")]
    packed = packed_plan([[len(plan) for plan in plans]], 99, [[plan.reach for plan in plans]])
    assert [len(group) for group in packed.groups] == [2, 1]
    assert packed_plan([[3, 3]], 6, [[None, None]]).reach is None


def test_a_batch_predicts_each_code_from_one_block_before():
    arrays = ({"pixels": np.zeros((4, 2), np.float32)},)
    spelled = in_blocks(2)
    rows = [[Prepared(drawn(spelled, "a", 4), arrays), Prepared(drawn(spelled, "bcd", 4), arrays)]]
    batch = assemble(rows, DUMMIES, spelled.pad)
    items = batch.generation["image"]
    begins = (batch.ids.view(-1) == spelled.tokenizer.id_of("<begin_of_image>")).nonzero()[:, 0].tolist()
    assert items.lengths == (5, 5)
    assert items.at.tolist() == [begin + place for begin in begins for place in range(1, 6)]
    # begin and the start embedding, then codes 0 and 1, predict; codes 2 and 3 are read by nobody
    assert items.predict_at.tolist() == [begin + place for begin in begins for place in range(4)]
    assert items.targets.tolist() == list(range(8))
    assert batch.packed.reach is not None
    assert list(itertools.chain(*batch.positions.tolist())) == [
        *range(len(rows[0][0])),
        *range(len(rows[0][1])),
    ]
