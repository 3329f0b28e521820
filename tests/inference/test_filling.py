"""Text over few seats: the same answers, from fewer runs of the language model."""

from __future__ import annotations

import pytest
import torch

from janus_plugins.inference import paths, words
from janus_plugins.inference.words import TextPrompt, generate_text

from .naive import naive_text
from .test_integration import picture, small_model


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def rows(*lengths: int) -> list[TextPrompt]:
    return [
        TextPrompt([(37 * length + 5 * place) % 250 for place in range(length)], length) for length in lengths
    ]


def called(model, run):
    """Return what `run` answers, and [rows, slots] of each run of the language model."""
    calls: list[tuple[int, ...]] = []
    hook = model.language_model.register_forward_pre_hook(
        lambda _, given: calls.append(tuple(given[0].shape[:2]))
    )
    try:
        return run(), calls
    finally:
        hook.remove()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_few_seats_answer_as_many_do(model, temperature):
    prompts = rows(5, 30, 9, 21, 3, 12, 17)
    free = generate_text(model, prompts, stop=-1, max_new_tokens=20, temperature=temperature)
    stop = free[1][3]
    settings = {"stop": stop, "max_new_tokens": 20, "temperature": temperature}
    expected = [generate_text(model, [prompt], **settings)[0] for prompt in prompts]
    assert len({len(one) for one in expected}) > 1
    for seats in (1, 2, 3, 7):
        assert generate_text(model, prompts, max_rows=seats, **settings) == expected


def test_a_free_seat_is_taken_at_once(model):
    prompts = rows(9, 8, 7, 6, 5)
    free = generate_text(model, prompts, stop=-1, max_new_tokens=24)
    stop = next(one for one in free[0][:3] if not any(one in other for other in free[1:3]))
    lengths = [one.index(stop) + 1 if stop in one else 24 for one in free]
    assert lengths[0] < 4
    assert lengths[1] == lengths[2] == 24
    _, calls = called(
        model, lambda: generate_text(model, prompts[:3], stop=stop, max_new_tokens=24, max_rows=2)
    )
    # The third begins when the first ends, not when the second does.
    assert sum(slots == 1 for _, slots in calls) == lengths[0] + 24 - 1


def test_a_cache_without_places_to_give_answers_in_batches(model, monkeypatch):
    prompts = rows(5, 30, 9, 21)
    expected = generate_text(model, prompts, stop=-1, max_new_tokens=5)
    monkeypatch.delattr(type(model.language_model.new_cache(1, 1)), "put")
    assert generate_text(model, prompts, stop=-1, max_new_tokens=5, max_rows=3) == expected


def test_long_runs_move_the_cache_on(model):
    prompts = rows(*range(3, 40, 2))
    expected = [naive_text(model, prompt.ids, -1, 9) for prompt in prompts]
    assert generate_text(model, prompts, stop=-1, max_new_tokens=9, max_rows=3) == expected


def test_those_who_come_together_leave_room_for_the_longest_answer(model):
    """Heads and tails are padded apart: a long head and a long tail push a short prompt far on."""
    positions = model.plan.model.facts.max_positions
    values = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    long = positions - 8
    late, early = (
        TextPrompt(list(range(long)), seed, [(start, values)]) for seed, start in ((1, long - 6), (2, 1))
    )
    prompts = [*rows(positions - 1, positions - 1, positions - 1), late, early, *rows(4)]
    alone = [generate_text(model, [one], stop=-1, max_new_tokens=positions)[0] for one in prompts]
    assert len(alone[-1]) == positions - 3
    assert generate_text(model, prompts, stop=-1, max_new_tokens=positions, max_rows=3) == alone


def test_questions_about_one_picture_share_its_prefill(model):
    image, other = picture(40), picture(200)
    questions = ["what?", "a longer question, is it?", "and?", "no?"]
    images = [[image], [image], [other], [image]]
    alone = [model.ask(q, images=i, max_new_tokens=6) for q, i in zip(questions, images, strict=True)]
    together, calls = called(model, lambda: model.ask(questions, images=images, max_new_tokens=6))
    assert together == alone
    assert calls[0][0] == 2  # one row for each picture
    assert calls[1][0] == 4


def test_an_item_of_several_questions_is_read_once(model, monkeypatch):
    read = []
    whole = paths.read_items
    monkeypatch.setattr(
        paths, "read_items", lambda part, values: read.append(len(values)) or whole(part, values)
    )
    image = picture(90)
    model.ask(["a", "b", "c"], images=[[image], [image], [picture(90)]], max_new_tokens=2)
    assert read == [2]


def test_prompts_without_items_join_those_with(model):
    values = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    mixed = [TextPrompt(list(range(12)), 0, [(4, values)]), *rows(20, 4)]
    expected = [naive_text(model, one.ids, -1, 6, one.items) for one in mixed]
    assert generate_text(model, mixed, stop=-1, max_new_tokens=6) == expected


def test_begin_text_leaves_a_prompt_that_ends_in_its_item_whole(model):
    values = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    one = TextPrompt(list(range(8)), 0, [(5, values)])
    stream = words.begin_text(model, [one], 2)
    assert stream.given == 8
