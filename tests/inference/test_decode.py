"""The decoding loop against the same computed from nothing at every step, and in any company."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from janus_plugins.core.facts import GenerationFacts, LanguageModelFacts
from janus_plugins.inference.codes import CodeEmbedder
from janus_plugins.inference.decode import ItemPrompt, generate_items
from janus_plugins.inference.stream import Stream, rows_within
from janus_plugins.inference.words import TextPrompt, generate_text

from .naive import last_hidden, naive_codes, naive_text
from .toys import CODES, POSITIONS, TOKENS, WIDTH, PlacedCodeAdapter, SharingCache, ToyCodeAdapter, toy_model

SETTINGS = [(5.0, 0.0), (5.0, 1.0), (1.0, 1.0), (0.0, 0.7), (2.0, 0.3)]


@pytest.fixture(scope="module")
def model():
    with torch.no_grad():
        yield toy_model()


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def prompt(length: int, *seeds: int) -> ItemPrompt:
    ids = [(7 * length + 3 * place) % 200 for place in range(length)]
    return ItemPrompt(ids, [ids[0], *[2] * (length - 2), ids[-1]], seeds)


def test_every_step_of_the_cache_equals_full_recomputation(model):
    rows = [
        torch.randn(length, WIDTH, generator=torch.Generator().manual_seed(length)) for length in (3, 8, 5)
    ]
    stream = Stream(model.language_model, rows, 4, POSITIONS)
    for step in range(4):
        expected = torch.cat([last_hidden(model, row) for row in rows])
        torch.testing.assert_close(stream.hidden, expected, atol=1e-5, rtol=1e-5)
        new = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(100 + step))
        stream.step(new)
        rows = [torch.cat((row, one[None])) for row, one in zip(rows, new, strict=True)]


def test_pieces_of_different_lengths_equal_full_recomputation(model):
    def piece(length, seed):
        return torch.randn(length, WIDTH, generator=torch.Generator().manual_seed(seed))

    rows = [piece(3, 1), piece(6, 2)]
    stream = Stream(model.language_model, rows, 12, POSITIONS)
    for seed, lengths in enumerate([(4, 1), (2, 3), (1, 1)]):
        new = [piece(length, 10 * seed + length) for length in lengths]
        stream.extend(new)
        rows = [torch.cat(pair) for pair in zip(rows, new, strict=True)]
        expected = torch.cat([last_hidden(model, row) for row in rows])
        torch.testing.assert_close(stream.hidden, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("guidance", "temperature"), SETTINGS)
def test_codes_equal_guidance_written_out(model, guidance, temperature):
    prompts = [prompt(9, 11, 12), prompt(4, 13), prompt(6, 14)]
    made = generate_items(model, "image", prompts, guidance=guidance, temperature=temperature)
    expected = [
        naive_codes(model, one, seed, guidance=guidance, temperature=temperature)[0]
        for one in prompts
        for seed in one.seeds
    ]
    assert made.shape == (4, TOKENS)
    assert torch.equal(made, torch.stack(expected))
    assert len({tuple(row) for row in made.tolist()}) > 1


def test_the_guided_logits_reach_the_choice(model, monkeypatch):
    head, seen = model.generation["image"].head, []
    monkeypatch.setattr(
        type(head),
        "sample",
        lambda self, hidden, other, *, guidance, temperature, draws: (
            seen.append(self.output(other) + guidance * (self.output(hidden) - self.output(other))),
            seen[-1].argmax(-1),
        )[1],
    )
    short, long = prompt(4, 1), prompt(9, 2)
    generate_items(model, "image", [short, long], guidance=3.0, temperature=0.0)
    for row, one in enumerate((short, long)):
        expected = naive_codes(model, one, 0, guidance=3.0, temperature=0.0)[1]
        torch.testing.assert_close(torch.stack(seen)[:, row], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("modality", ["image", "sound"])
@pytest.mark.parametrize(("guidance", "temperature"), SETTINGS[:3])
def test_mates_batches_and_counts_change_nothing(model, modality, guidance, temperature):
    def run(*prompts, max_rows=None):
        return generate_items(
            model, modality, prompts, guidance=guidance, temperature=temperature, max_rows=max_rows
        )

    many = [prompt(9, 1, 2, 3), prompt(4, 4), prompt(20, 5, 6)]
    together = run(*many)
    alone = torch.cat(
        [run(ItemPrompt(one.conditional, one.unconditional, [s])) for one in many for s in one.seeds]
    )
    same = torch.equal if modality == "image" else (lambda a, b: torch.allclose(a, b, atol=1e-4))
    assert same(together, alone)
    for max_rows in (1, 2, 3, 5, 100):
        assert same(together, run(*many, max_rows=max_rows))
    assert same(together[:2], run(prompt(9, 1, 2)))
    assert same(together[[5, 3]], run(prompt(20, 6), prompt(4, 4)))


def test_latents_are_guided_and_drawn(model):
    made = generate_items(model, "sound", [prompt(5, 1, 2)], guidance=2.0, temperature=0.5)
    assert made.shape == (2, TOKENS, 3)
    assert not torch.allclose(made[0], made[1])
    greedy = generate_items(model, "sound", [prompt(5, 1, 2)], guidance=2.0, temperature=0.0)
    assert torch.allclose(greedy[0], greedy[1])


def test_guidance_of_one_runs_no_unconditional_rows(model):
    language_model = model.language_model
    language_model.calls.clear()
    generate_items(model, "image", [prompt(5, 1, 2)], guidance=1.0)
    assert {rows for rows, _ in language_model.calls} == {2}
    language_model.calls.clear()
    generate_items(model, "image", [prompt(5, 1, 2)], guidance=1.5)
    assert {rows for rows, _ in language_model.calls} == {4}


def test_a_shared_prefill_gives_the_same_codes_from_fewer_rows(model, monkeypatch):
    prompts = [prompt(5, 1, 2, 3), prompt(7, 4)]
    expected = generate_items(model, "image", prompts)
    monkeypatch.setattr(type(model.language_model), "cache_class", SharingCache)
    model.language_model.calls.clear()
    assert torch.equal(generate_items(model, "image", prompts), expected)
    assert model.language_model.calls[0] == (4, 7)
    assert model.language_model.calls[1:] == [(8, 1)] * (TOKENS - 1)


@pytest.mark.parametrize("copies", [1, 4])
def test_an_adapter_that_minds_the_place_gets_what_came_before(copies):
    model = toy_model(adapter=PlacedCodeAdapter)
    seeds = range(copies)
    made = generate_items(model, "image", [prompt(5, *seeds)], guidance=2.0)
    expected = [naive_codes(model, prompt(5), seed, guidance=2.0, temperature=1.0)[0] for seed in seeds]
    assert torch.equal(made, torch.stack(expected))


def test_a_table_is_made_only_where_it_is_exact_and_pays():
    facts = GenerationFacts("image", "codes", TOKENS, 1, CODES, (2, 3))
    assert CodeEmbedder(ToyCodeAdapter(), facts, 1).table is None
    assert CodeEmbedder(ToyCodeAdapter(), facts, 2).table.shape == (CODES, WIDTH)
    placed = CodeEmbedder(PlacedCodeAdapter(), facts, 2)
    assert placed.table is None
    assert not placed.alike


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_small_places_are_noticed_in_every_format(dtype):
    facts = GenerationFacts("image", "codes", TOKENS, 1, CODES, (2, 3))
    adapter = PlacedCodeAdapter()
    nn.init.normal_(adapter.places.weight, std=0.01, generator=torch.Generator().manual_seed(0))
    assert not CodeEmbedder(adapter.to(dtype), facts, 2).alike
    assert CodeEmbedder(ToyCodeAdapter().to(dtype), facts, 2).alike


def text_rows(*lengths: int) -> list[TextPrompt]:
    return [
        TextPrompt([(5 * length + place) % 200 for place in range(length)], seed=length) for length in lengths
    ]


def test_greedy_text_equals_the_slow_way_and_minds_no_mates(model):
    rows = text_rows(3, 30, 11, 12)
    values = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0))
    rows[2] = TextPrompt(rows[2].ids, 0, [(2, values), (7, -values)])
    ends = model.tokenizer.id_of("</s>")
    said = generate_text(model, rows, stop=ends, max_new_tokens=9)
    assert said == [naive_text(model, row.ids, ends, 9, row.items) for row in rows]
    assert len({tuple(one) for one in said}) == 4
    assert generate_text(model, rows, stop=ends, max_new_tokens=9, max_rows=3) == said
    assert generate_text(model, rows[2:3], stop=ends, max_new_tokens=9) == said[2:3]


def test_a_row_ends_at_its_stop_whatever_the_others_do(model):
    rows = text_rows(3, 30, 11)
    free = generate_text(model, rows, stop=-1, max_new_tokens=12)
    stop = free[1][4]
    model.language_model.calls.clear()
    said = generate_text(model, rows, stop=stop, max_new_tokens=12)
    assert said == [one[: one.index(stop)] if stop in one else one for one in free]
    assert len(said[1]) <= 4
    model.language_model.calls.clear()
    generate_text(model, rows[1:2], stop=stop, max_new_tokens=12)
    assert len(model.language_model.calls) == len(said[1]) + 1  # it does not run on to the end


def test_text_stops_where_positions_end(model):
    rows = text_rows(POSITIONS, POSITIONS - 3, 10)
    model.language_model.calls.clear()
    generate_text(model, rows[:2], stop=-1, max_new_tokens=20)
    assert len(model.language_model.calls) == 4
    said = generate_text(model, rows, stop=-1, max_new_tokens=20)
    assert [len(one) for one in said] == [1, 4, 20]
    assert said == [naive_text(model, row.ids, -1, len(one)) for row, one in zip(rows, said, strict=True)]


def test_sampled_text_follows_the_seed_alone(model):
    def run(*rows, **options):
        return generate_text(model, rows, stop=-1, max_new_tokens=8, **{"temperature": 1.5, **options})

    first, second = text_rows(5, 9)
    said = run(first, second)
    assert run(second) == said[1:]
    assert run(first, second) == said
    assert run(TextPrompt(first.ids, 77)) != said[:1]
    assert run(first, second, top_p=1e-6) == run(first, second, temperature=0.0)
    assert run(first, second, top_p=0.6) != said


def test_ids_that_the_tokenizer_does_not_have_are_never_said():
    model = toy_model()
    known = len(model.tokenizer)
    model.language_model.text_head.output.bias[known:] = 100.0
    said = generate_text(model, text_rows(4), stop=-1, max_new_tokens=6)
    assert max(said[0]) < known


def test_the_budget_of_the_cache_decides_how_many_rows_run_at_once():
    facts = LanguageModelFacts(2048, 102400, 16384, 24, 16, 16)
    # 196,608 bytes a slot and row in bf16, as in the reference model's figures.
    assert rows_within(facts, 640, 2, budget=640 * 196_608 * 7 + 1) == 7
    assert rows_within(facts, 640, 2, budget=1) == 1
