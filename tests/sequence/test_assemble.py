"""Assembly: every position of a batch, checked against the samples it was made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from janus_plugins.core.errors import DataError
from janus_plugins.core.samples import TASKS, generation_sample, text_sample, understanding_sample
from janus_plugins.sequence.assemble import Dummies, Prepared, assemble, assemble_items, collate_items
from janus_plugins.sequence.layout import plan_sample

from .spell import spelling, stage

SPELLED = spelling("plain")
DUMMIES = Dummies(
    {"image": {"pixels": np.zeros((1, 2), np.float32)}},
    {"image": {"pixels": np.zeros((1, 2), np.float32)}},
    {("understanding", "image"): 1, ("generation", "image"): 4},
    {"image": 2},
)


def prepared(kind: str, number: int) -> Prepared:
    rng = np.random.default_rng(0)
    if kind == "text":
        return Prepared(plan_sample(text_sample("ab" * number, "k"), [], SPELLED, stage(), rng))
    make = understanding_sample if kind == "understanding" else None
    sample = make("image", 0, "q", "a", "k") if make else generation_sample("p", "image", 0, "k")
    slots = number if kind == "understanding" else 4
    arrays = {"pixels": np.full((slots, 2), number, np.float32)}
    return Prepared(plan_sample(sample, [slots], SPELLED, stage(), rng), (arrays,), (2 * slots,))


ROWS = [
    [prepared("understanding", 2), prepared("generation", 7), prepared("text", 2)],
    [prepared("generation", 8), prepared("understanding", 3)],
]


def test_rows_positions_and_padding() -> None:
    batch = assemble(ROWS, DUMMIES, SPELLED.pad)
    lengths = [[len(sample) for sample in row] for row in ROWS]
    width = max(map(sum, lengths))
    assert batch.ids.shape == (2, width)
    for row, samples in enumerate(ROWS):
        ids = [one for sample in samples for one in sample.plan.ids]
        positions = [position for sample in samples for position in range(len(sample))]
        rest = width - len(ids)
        assert batch.ids[row].tolist() == ids + [SPELLED.pad] * rest
        assert batch.positions[row].tolist() == positions + [0] * rest
    assert batch.num_tokens == sum(map(sum, lengths))
    assert batch.num_samples == {"understanding": 2, "generation": 2, "text": 1}


def test_text_targets_are_the_next_ids_of_their_task() -> None:
    batch = assemble(ROWS, DUMMIES, SPELLED.pad)
    flat = batch.ids.view(-1)
    assert torch.equal(batch.text_targets, flat[batch.text_at + 1])
    counts = torch.bincount(batch.text_tasks, minlength=len(TASKS)).tolist()
    assert dict(zip(batch.tasks, counts, strict=True)) == {
        "text": 5,  # "abab" and eos
        "understanding": 2 * 3,  # " a" and eos
        "generation": 0,
        "interleaved": 0,
    }


def test_items_fill_the_slots_after_their_begin_token() -> None:
    batch = assemble(ROWS, DUMMIES, SPELLED.pad)
    begin = SPELLED.tokenizer.id_of("<begin_of_image>")
    shown, made = batch.understanding["image"], batch.generation["image"]
    flat = batch.ids.view(-1)
    assert shown.lengths == (2, 3)
    assert shown.entering == (4, 6)
    assert made.lengths == (4, 4)
    for items in (shown, made):
        assert not items.absent
        assert (flat[items.at] == SPELLED.pad).all()
        starts = torch.tensor([0, *np.cumsum(items.lengths)[:-1]])
        assert (flat[items.at[starts] - 1] == begin).all()
    assert shown.items["pixels"].shape == (2, 3, 2)
    assert shown.items["pixels_lengths"].tolist() == [2, 3]
    assert made.items["pixels"][:, 0, 0].tolist() == [7, 8]
    assert shown.items["pixels"][:, 0, 0].tolist() == [2, 3]


def test_the_slot_before_a_code_predicts_it() -> None:
    made = assemble(ROWS, DUMMIES, SPELLED.pad).generation["image"]
    assert made.predict_at is not None
    assert made.targets is not None
    assert torch.equal(made.predict_at, made.at - 1)
    assert torch.equal(made.targets, torch.arange(8))


def test_absent_modalities_get_one_dummy() -> None:
    batch = assemble([[prepared("text", 1)]], DUMMIES, SPELLED.pad)
    for items in (batch.understanding["image"], batch.generation["image"]):
        assert items.absent
        assert items.at.numel() == 0
        assert items.items["pixels"].shape == (1, 1, 2)
    assert batch.understanding["image"].entering == (2,)
    assert batch.generation["image"].lengths == (4,)
    assert batch.targets() == {"text": 3, "generation.image": 0}


def test_no_rows_at_all_give_one_slot_of_padding() -> None:
    batch = assemble([], DUMMIES, SPELLED.pad)
    assert batch.ids.tolist() == [[SPELLED.pad]]
    assert batch.targets() == {"text": 0, "generation.image": 0}
    assert batch.num_tokens == 0


def test_items_alone() -> None:
    arrays = [{"pixels": np.full((4, 2), value, np.float32)} for value in (1, 2, 3)]
    batch = assemble_items("image", arrays, 4, DUMMIES, SPELLED.pad)
    made = batch.generation["image"]
    assert made.items["pixels"].shape == (3, 4, 2)
    assert (made.lengths, made.absent, made.at.numel()) == ((4, 4, 4), False, 0)
    assert assemble_items("image", [], 4, DUMMIES, SPELLED.pad).generation["image"].absent


def test_collate_pads_the_first_axis_only() -> None:
    ragged = [{"x": np.ones((2, 3)), "y": np.array(1)}, {"x": np.ones((4, 3)), "y": np.array(2)}]
    collated = collate_items(ragged)
    assert collated["x"].shape == (2, 4, 3)
    assert collated["x_lengths"].tolist() == [2, 4]
    assert collated["x"][0, 2:].sum() == 0
    assert collated["y"].tolist() == [1, 2]
    with pytest.raises(DataError, match="only axis 0 may differ"):
        collate_items([{"x": np.ones((2, 3))}, {"x": np.ones((2, 4))}])
    with pytest.raises(DataError, match=r"\['y'\] for one item and \['x'\]"):
        collate_items([{"x": np.ones(2)}, {"y": np.ones(2)}])
