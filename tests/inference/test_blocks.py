"""Decoding in blocks against the same computed from nothing at every pass, and in any company."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from janus_plugins.core.contracts import Packed
from janus_plugins.core.errors import RunFileError
from janus_plugins.inference.blocks import BlockDraws
from janus_plugins.inference.decode import ItemPrompt, generate_items
from janus_plugins.inference.sampling import SeededDraws
from janus_plugins.sequence.blocks import Blocks

from .test_decode import SETTINGS, prompt
from .toys import TOKENS, WIDTH, PlacedCodeAdapter, SharingCache, toy_model

ORDER = (0, 3, 1, 4, 2, 5)
BLOCKS = [Blocks(2), Blocks(3), Blocks(2, 2), Blocks(TOKENS)]


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def block_model(blocks: Blocks, **options: type[nn.Module]):
    """Return the toy model with both of its paths in blocks, in an order of their own."""
    model = toy_model(**options)
    for seed, path in enumerate(model.generation.values()):
        path.blocks, path.order = blocks, ORDER
        path.starts = nn.Embedding(blocks.size - 1, WIDTH)
        nn.init.normal_(path.starts.weight, std=0.4, generator=torch.Generator().manual_seed(seed))
    return model


def naive_hidden(model, line: list[Tensor], reach: list[int]) -> Tensor:
    """Return hidden states [L, M] of a whole row that is computed at once."""
    embeds, length = torch.cat(line), len(reach)
    plan = Packed(
        (torch.arange(length)[None],),
        torch.tensor([0, length], dtype=torch.int32),
        length,
        (torch.tensor(reach),),
    )
    return model.language_model(embeds[None], torch.arange(length)[None], plan)[0]


def naive_blocks(model, one: ItemPrompt, seed: int, blocks: Blocks, guidance: float, temperature: float):
    """Return one image's codes in the order of the grid: no cache, no helper of the code under test."""
    path, embed = model.generation["image"], model.language_model.embed
    draws, codes = SeededDraws([seed]), []
    while len(codes) < TOKENS:
        count = 1 if len(codes) < blocks.alone else blocks.size
        answers = []
        for ids in (one.conditional, one.unconditional):
            line, reach = [embed(torch.tensor(ids))], list(range(len(ids)))
            embedded = path.adapter(torch.tensor([codes]))[0] if codes else None
            if blocks.alone and codes:
                line.append(embedded[: blocks.alone])
                reach += range(len(reach), len(reach) + min(len(codes), blocks.alone))
            if count > 1:
                line.append(path.starts.weight)
                reach[-1] = last = len(reach) + blocks.size - 2
                reach += [last] * (blocks.size - 1)
                for begin in range(blocks.alone, len(codes), blocks.size):
                    line.append(embedded[begin : begin + blocks.size])
                    reach += [len(reach) + blocks.size - 1] * blocks.size
            answers.append(path.head.logits(naive_hidden(model, line, reach)[-count:]))
        logits = answers[1] + guidance * (answers[0] - answers[1])
        for row in logits:
            if temperature == 0:
                codes.append(int(row.argmax()))
                continue
            heap = (row / temperature).softmax(-1).double().cumsum(0)
            codes.append(int((heap <= draws.uniform().item() * heap[-1]).sum()))
    grid = torch.empty(TOKENS, dtype=torch.long)
    grid[list(ORDER)] = torch.tensor(codes)
    return grid


@pytest.mark.parametrize("blocks", BLOCKS, ids=str)
@pytest.mark.parametrize(("guidance", "temperature"), SETTINGS[:3])
def test_codes_equal_blocks_written_out(blocks, guidance, temperature):
    model = block_model(blocks)
    prompts = [prompt(9, 11, 12), prompt(4, 13)]
    made = generate_items(model, "image", prompts, guidance=guidance, temperature=temperature)
    expected = [
        naive_blocks(model, one, seed, blocks, guidance, temperature) for one in prompts for seed in one.seeds
    ]
    assert torch.equal(made, torch.stack(expected))
    assert len({tuple(row) for row in made.tolist()}) > 1


@pytest.mark.parametrize("modality", ["image", "sound"])
def test_mates_and_batches_change_nothing(modality):
    model = block_model(Blocks(2, 2))
    many = [prompt(9, 1, 2, 3), prompt(4, 4), prompt(20, 5, 6)]

    def run(*prompts, max_rows=None):
        return generate_items(model, modality, prompts, guidance=2.0, max_rows=max_rows)

    same = torch.equal if modality == "image" else (lambda a, b: torch.allclose(a, b, atol=1e-4))
    together = run(*many)
    for max_rows in (1, 3, 5):
        assert same(together, run(*many, max_rows=max_rows))
    assert same(together[[5, 3]], run(prompt(20, 6), prompt(4, 4)))


@pytest.mark.parametrize("blocks", BLOCKS, ids=str)
def test_a_pass_makes_a_block_and_a_prompt_runs_once(blocks, monkeypatch):
    model = block_model(blocks)
    expected = generate_items(model, "image", [prompt(5, 1, 2, 3), prompt(7, 4)])
    monkeypatch.setattr(type(model.language_model), "cache_class", SharingCache)
    model.language_model.calls.clear()
    assert torch.equal(generate_items(model, "image", [prompt(5, 1, 2, 3), prompt(7, 4)]), expected)
    first, *others = model.language_model.calls
    passes = blocks.passes(TOKENS)
    assert len(others) + 1 == len(passes)
    assert first == (4, 7 + (0 if blocks.alone else blocks.size - 1))
    assert others == [(8, size) for size in passes[1:]]


def test_an_adapter_that_minds_the_place_gets_what_came_before():
    blocks = Blocks(2)
    model = block_model(blocks, adapter=PlacedCodeAdapter)
    made = generate_items(model, "image", [prompt(5, 0, 1)], guidance=2.0)
    expected = [naive_blocks(model, prompt(5), seed, blocks, 2.0, 1.0) for seed in (0, 1)]
    assert torch.equal(made, torch.stack(expected))


def test_every_code_of_a_row_draws_from_the_rows_own_stream():
    plain, drawn = SeededDraws([7, 8]), BlockDraws(SeededDraws([7, 8]), 3)
    numbers = [plain.uniform() for _ in range(6)]
    assert torch.equal(drawn.uniform().view(2, 3), torch.stack(numbers[:3], 1))
    assert torch.equal(drawn.uniform().view(2, 3), torch.stack(numbers[3:], 1))
    assert torch.equal(drawn.normal(4).view(2, 3, 4), torch.stack([plain.normal(4) for _ in range(3)], 1))


def test_a_block_of_one_draws_as_plain_decoding():
    plain, drawn = SeededDraws([7, 8]), BlockDraws(SeededDraws([7, 8]), 1)
    assert torch.equal(drawn.uniform(), plain.uniform())
    assert torch.equal(drawn.normal(2, 3), plain.normal(2, 3))


@pytest.mark.parametrize(
    "options", [{"compile": True}, {"decoding": "jacobi"}, {"decoding": "zigzag"}], ids=str
)
def test_ways_for_one_code_after_another_are_refused(options):
    with pytest.raises(RunFileError, match=r"predicts blocks of codes .* leave it out"):
        generate_items(block_model(Blocks(2)), "image", [prompt(5, 1)], **options)
