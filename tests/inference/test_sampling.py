"""Random streams: the published generator, and rows that do not see their mates."""

from __future__ import annotations

import pytest
import torch

from janus_plugins.inference.sampling import SeededDraws, normals, row_seed, uniforms


def test_the_generator_is_splitmix64():
    # First outputs for seed 1234567, from the reference implementation (prng.di.unimi.it).
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    expected = torch.tensor([[(value >> 40) / 2**24 for value in published]])
    assert torch.equal(uniforms(torch.tensor([1234567]), 0, 3), expected)


def test_a_row_is_the_same_in_any_batch_and_at_any_block():
    seeds = [row_seed(0, "a", index) for index in range(5)]
    together, alone = SeededDraws(seeds), SeededDraws(seeds[3:4])
    drawn = [(together.uniform(), alone.uniform()) for _ in range(2100)]
    assert all(torch.equal(many[3:4], one) for many, one in drawn)
    series = torch.stack([one for _, one in drawn], 1)
    assert torch.equal(series, uniforms(torch.tensor([seeds[3] - 2**64 * (seeds[3] >= 2**63)]), 0, 2100))


def test_normals_go_on_where_they_stopped_and_leave_the_uniforms_alone():
    seeds = torch.tensor([7, 8])
    first, second = normals(seeds, 0, 6), normals(seeds, 6, 4)
    assert torch.equal(torch.cat((first, second), 1), normals(seeds, 0, 10))
    draws = SeededDraws([7, 8])
    before = draws.normal(2, 3)
    assert before.shape == (2, 2, 3)
    assert not torch.equal(before, draws.normal(2, 3))
    assert torch.equal(draws.uniform(), SeededDraws([7, 8]).uniform())


def test_the_numbers_are_distributed_as_they_should():
    flat = uniforms(torch.arange(100), 0, 1000).flatten()
    assert flat.min() >= 0
    assert flat.max() < 1
    counts = torch.histc(flat, bins=20, min=0, max=1)
    assert ((counts - 5000).abs() < 350).all()  # 5 standard deviations
    drawn = normals(torch.arange(100), 0, 1000).flatten()
    assert drawn.isfinite().all()
    assert drawn.mean().abs() < 0.02
    assert (drawn.std() - 1).abs() < 0.02


@pytest.mark.parametrize("other", [(1, "a", 0), (0, "b", 0), (0, "a", 1), (0, "a\0", 0)])
def test_seeds_differ_by_seed_prompt_and_number(other):
    assert row_seed(0, "a", 0) == row_seed(0, "a", 0)
    assert row_seed(0, "a", 0) != row_seed(*other)
    assert 0 <= row_seed(*other) < 2**64
