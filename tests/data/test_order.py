"""Order by arithmetic: bijections, exact shares, plain states."""

from __future__ import annotations

import itertools
import json
from fractions import Fraction

import pytest

from janus_plugins.core.schema import Window
from janus_plugins.data.mixture import MixState, Mixture, Share, stage_sources
from janus_plugins.data.order import apportion, key_of, permuted

from .toys import only_stage, toy_plan


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 255, 256, 257, 1000, 1797])
def test_permutations_are_bijections(size: int) -> None:
    for key in (0, key_of("a"), key_of("b")):
        assert sorted(permuted(index, size, key) for index in range(size)) == list(range(size))


def test_keys_give_different_and_well_mixed_orders() -> None:
    size = 2000
    orders = [[permuted(index, size, key_of(epoch)) for index in range(size)] for epoch in range(20)]
    assert len({tuple(order) for order in orders}) == 20
    for order in orders:
        kept = sum(index == place for index, place in enumerate(order))
        neighbours = sum(abs(a - b) == 1 for a, b in itertools.pairwise(order))
        assert kept < 12
        assert neighbours < 16
        halves = sum(place < size // 2 for place in order[: size // 2])
        assert 430 < halves < 570


def test_large_sizes_cost_nothing() -> None:
    size = 10**12
    places = {permuted(index, size, 1) for index in range(1000)}
    assert len(places) == 1000
    assert max(places) < size
    assert max(places) > size // 2 > min(places)


def test_keys_are_the_same_in_every_process() -> None:
    assert key_of(0, "stage", "captions", 3) == 11079546540320209980
    assert key_of("ab", "c") != key_of("a", "bc")


@pytest.mark.parametrize(
    ("mix", "batch"), [("7 3 10", 256), ("2 3 5", 512), ("1 0.5 0.3", 7), ("5 1 4", 3), ("1 1 1", 1)]
)
def test_shares_are_within_one_in_every_step_and_exact_over_many(mix: str, batch: int) -> None:
    weights = {str(place): Fraction(share) for place, share in enumerate(mix.split())}
    total, owed, sums = sum(weights.values()), {}, dict.fromkeys(weights, 0)
    for step in range(1, 400):
        counts, owed = apportion(batch, weights, owed)
        assert sum(counts.values()) == batch
        for name, weight in weights.items():
            sums[name] += counts[name]
            assert abs(counts[name] - batch * weight / total) < 1
            assert abs(sums[name] - step * batch * weight / total) < 2
            assert sums[name] - step * batch * weight / total == -owed[name]


def test_a_mixture_state_survives_json_and_goes_on() -> None:
    shares = tuple(
        Share(name, group, Fraction(weight), 10, Window(after=after))
        for name, group, weight, after in [("a", "t", 1, 0), ("b", "t", 2, 3), ("c", "g", 1, 0)]
    )
    mixture = Mixture(7, {"t": Fraction(1), "g": Fraction(2)}, shares)
    state, states, draws = MixState(), [], []
    for _ in range(12):
        drawn, state = mixture.draw(state)
        draws.append(drawn)
        states.append(json.dumps(state.plain()))
    for position in range(11):
        drawn, after = mixture.draw(MixState.read(json.loads(states[position])))
        assert drawn == draws[position + 1]
        assert json.dumps(after.plain()) == states[position + 1]
    assert {draw.source for draw in draws[2]} == {"a", "c"}
    assert sum(draw.count for step in draws[3:] for draw in step if draw.source == "b") == 14
    for name in "abc":  # positions of a source follow one another
        spans = [(draw.first, draw.count) for step in draws for draw in step if draw.source == name]
        assert all(first + count == then for (first, count), (then, _) in itertools.pairwise(spans))


def test_sizes_are_the_default_weights() -> None:
    from janus_plugins.data.mixture import stage_mixture

    plan = toy_plan({"small": {"task": "text", "size": 10}, "large": {"task": "text", "size": 50}})
    mixture = stage_mixture(plan, only_stage(plan), {"small": 10, "large": 50})
    drawn, _ = mixture.draw(MixState())
    assert {draw.source: draw.count for draw in drawn} == {"small": 1, "large": 5}


def test_a_reconstruction_draws_from_every_source_that_makes_the_modality() -> None:
    sources = {
        "words": {"task": "text"},
        "shown": {"task": "understanding"},
        "drawn": {"task": "generation"},
        "held": {"task": "generation", "split": "test"},
    }
    plan = toy_plan(sources, {"mix": {}, "reconstruct": "wave"})
    assert list(stage_sources(plan, only_stage(plan))) == ["drawn"]
    plan = toy_plan(sources, {"mix": {}, "reconstruct": "wave", "sources": {"shown": {}, "drawn": {}}})
    assert list(stage_sources(plan, only_stage(plan))) == ["shown", "drawn"]
