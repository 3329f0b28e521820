"""Several codes a run: Jacobi decoding keeps the distribution, rows side by side keep what they may see."""

from __future__ import annotations

import pytest
import torch

from janus_plugins.core.errors import RunFileError
from janus_plugins.inference.jacobi import jacobi_codes
from janus_plugins.inference.sampling import SeededDraws
from janus_plugins.inference.zigzag import plan_runs, sight

from .test_filling import called
from .test_integration import small_model
from .toys import toy_model


@pytest.fixture(scope="module")
def model():
    return small_model()


def codes(model, *prompts, **options):
    return model.generate(list(prompts), return_codes=True, seed=3, **options)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("window", [1, 2, 3, 16])
def test_greedy_guesses_give_the_same_codes(model, guidance, window):
    settings = {"guidance": guidance, "temperature": 0.0, "num_per_prompt": 1}
    expected = codes(model, "a seven", "one", **settings)
    assert torch.equal(codes(model, "a seven", "one", decoding="jacobi", window=window, **settings), expected)


def test_no_item_minds_its_mates(model):
    settings = {"decoding": "jacobi", "window": 3, "guidance": 2.0}
    together = codes(model, "a seven", "one", num_per_prompt=2, **settings)
    assert torch.equal(together[2:], codes(model, "one", num_per_prompt=2, **settings))


class Chain:
    """A stream whose hidden state is the code before: a Markov chain, in place of a language model."""

    def __init__(self, states: int) -> None:
        self.hidden = torch.full((1, 1), float(states))
        self.runs = 0

    def look(self, embeds):
        self.runs += 1
        return embeds

    def keep(self, slots):
        self.kept = slots


@pytest.mark.parametrize("window", [1, 4])
def test_guesses_leave_the_distribution_as_it_is(window):
    table = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.45, 0.1, 0.45], [0.2, 0.3, 0.5]])
    runs, counts, number = 0, torch.zeros(3, 3, 3), 2500
    for seed in range(number):
        chain = Chain(3)
        made = jacobi_codes(
            chain,
            lambda hidden: table[hidden.reshape(-1).long()],
            lambda ids: ids[None, :, None].float(),
            3,
            window,
            SeededDraws([seed * 7919 + 1]),
        )
        counts[tuple(made.tolist())] += 1
        runs += chain.runs
    expected = table[3][:, None, None] * table[:3][:, :, None] * table[:3][None]
    assert (counts / number - expected).abs().max() < 4 * (0.25 / number) ** 0.5
    assert runs == 2 * number if window == 1 else runs < 1.9 * number


@pytest.mark.parametrize(("height", "width"), [(2, 2), (4, 4), (3, 5), (1, 6)])
@pytest.mark.parametrize("window", [1, 2, 5])
def test_every_code_is_decided_once_from_what_lies_before_it(height, width, window):
    runs = plan_runs(height, width, min(window, width))
    answered = [slot.answers for run in runs for slot in run if slot.answers is not None]
    assert sorted(answered) == list(range(1, height * width))
    made, slots = {0}, []
    for run, seen in zip(runs, sight(runs), strict=True):
        assert all(slot.code in made for slot in run)
        slots += run
        for slot, row in zip(run, seen, strict=True):
            shown = [other for other, yes in zip(slots, row.tolist(), strict=True) if yes]
            assert slot in shown
            assert all(other.place <= slot.place for other in shown)
            places = [other.place for other in shown]
            assert len(places) == len(set(places))
        made |= {slot.answers for slot in run if slot.answers is not None}
    if window >= width:
        assert [[slot.place for slot in run] for run in runs] == [[p] for p in range(height * width - 1)]
        assert all(slot.code == slot.place for run in runs for slot in run)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_window_of_a_whole_row_decodes_one_by_one(model, temperature):
    settings = {"guidance": 3.0, "temperature": temperature, "num_per_prompt": 2}
    expected = codes(model, "a seven", "one", **settings)
    assert torch.equal(codes(model, "a seven", "one", decoding="zigzag", window=9, **settings), expected)


def test_rows_side_by_side_take_fewer_runs(model):
    def run(**options):
        return called(model, lambda: codes(model, "a seven", num_per_prompt=2, guidance=3.0, **options))

    (_, one_by_one), (made, side_by_side) = run(), run(decoding="zigzag", window=1)
    assert made.shape == (2, 16)
    assert (len(one_by_one), len(side_by_side)) == (16, 7)


def test_what_a_model_cannot_do_is_refused(model):
    with pytest.raises(RunFileError, match="one of steps"):
        codes(model, "a", decoding="leap")
    with pytest.raises(RunFileError, match="compile cannot"):
        codes(model, "a", decoding="jacobi", compile=True)
    toy = toy_model()
    with pytest.raises(RunFileError, match="no distribution"):
        toy.generate(["a"], decoding="jacobi", return_codes=True)
    with pytest.raises(RunFileError, match="free_masks"):
        toy.generate(["a"], decoding="zigzag", return_codes=True)
    with pytest.raises(RunFileError, match="latents"):
        toy.generate(["a"], modality="sound", decoding="zigzag", return_codes=True)
