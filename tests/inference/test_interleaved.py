"""Answers of text and items: against the same written the slow way, in any company, and piece by piece."""

from __future__ import annotations

import inspect
import itertools
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from janus_plugins.core.errors import DataError, RunFileError
from janus_plugins.inference.artefacts import AnswerFiles, Generated, Interleaved
from janus_plugins.inference.events import ItemFinished, ItemStarted, Spoken, TextPiece
from janus_plugins.inference.interleaved import interleave
from janus_plugins.inference.paths import embed_given
from janus_plugins.inference.prompts import answer_prompt, item_prompt, switches
from janus_plugins.inference.sampling import SeededDraws, row_seed
from janus_plugins.model.unified import UnifiedModel

from .naive import last_hidden, naive_codes, with_items
from .toys import POSITIONS, TOKENS, PlacedCodeAdapter, toy_model

PROMPTS = ["why?", "a longer prompt, with words", "c"]
OPTIONS = {"max_new_tokens": 24, "max_items": 3, "guidance": 2.0, "text_temperature": 1.0, "seed": 5}


def eager(**options: object) -> UnifiedModel:
    """Return a toy model that begins items, and ends, now and then."""
    model = toy_model(**options)  # type: ignore[arg-type]
    bias = model.language_model.text_head.output.bias
    with torch.no_grad():
        for token, more in (("<begin_of_image>", 4.5), ("<begin_of_sound>", 4), ("</s>", 1)):
            bias[model.tokenizer.id_of(token)] += more
        for token in ("<pad>", "<end_of_image>", "<image_placeholder>", "<s>"):
            bias[model.tokenizer.id_of(token)] += 10
    return model


@pytest.fixture(scope="module")
def model() -> UnifiedModel:
    return eager()


def picture(seed: int, length: int = 4) -> list[list[float]]:
    return np.random.default_rng(seed).normal(size=(length, 3)).tolist()


def plain(answer: Interleaved) -> list[object]:
    return [part if isinstance(part, str) else (part.modality, part.codes.tolist()) for part in answer.parts]


def alike(one: Interleaved, other: Interleaved) -> bool:
    """Compare text and codes exactly, and latents as far as sums in another order allow."""
    pairs = list(itertools.zip_longest(one.parts, other.parts))
    return all(
        torch.allclose(first.codes, second.codes, atol=1e-4)
        if isinstance(first, Generated) and isinstance(second, Generated)
        else first == second
        for first, second in pairs
    )


@torch.no_grad()
def slow(model: UnifiedModel, prompt: str, shown: list[tuple[str, Tensor]], guidance: float) -> list[object]:
    """Answer one prompt without cache, mates or padding; images only, sampled text."""
    steer, seed = switches(model), row_seed(5, prompt, 0)
    row, draws = answer_prompt(model, prompt, shown, None, seed), SeededDraws([seed])
    embed, path = model.language_model.embed, model.generation["image"]
    rows = []
    for ids in (row.conditional, row.unconditional):
        rows.append(with_items(embed(torch.tensor(ids)), row.items))
    parts: list[object] = []
    said: list[int] = []
    tokens, items = 24, 3
    while tokens:
        logits = model.language_model.text_head.logits(last_hidden(model, rows[0]))[0, : len(model.tokenizer)]
        logits[list(steer.silent)] = -torch.inf
        for begin, name in steer.begins.items():
            if name == "sound" or not items:
                logits[begin] = -torch.inf
        heap = logits.softmax(-1).double().cumsum(0)
        token = int((heap <= draws.uniform().item() * heap[-1]).sum())
        tokens -= 1
        if token == steer.eos:
            break
        if token not in steer.begins:
            said.append(token)
            rows = [
                torch.cat((r, embed(torch.tensor([i]))))
                for r, i in zip(rows, (token, steer.pad), strict=True)
            ]
            continue
        items -= 1
        parts += [model.tokenizer.decode(said).strip()]
        said, codes = [], []
        rows = [torch.cat((each, embed(torch.tensor([token])))) for each in rows]
        for _ in range(TOKENS):
            made = [path.adapter(torch.tensor([codes]))[0]] if codes else []
            one, other = (path.head.logits(last_hidden(model, torch.cat((each, *made)))) for each in rows)
            guided = (other + guidance * (one - other))[0] if guidance != 1 else one[0]
            heap = guided.softmax(-1).double().cumsum(0)
            codes.append(int((heap <= draws.uniform().item() * heap[-1]).sum()))
        parts.append(("image", codes))
        end = embed(torch.tensor([steer.ends["image"]]))
        rows = [torch.cat((each, path.adapter(torch.tensor([codes]))[0], end)) for each in rows]
    parts += [model.tokenizer.decode(said).strip()]
    return [part for part in parts if part]


@pytest.mark.parametrize("guidance", [2.0, 1.0])
@pytest.mark.parametrize("adapter", [None, PlacedCodeAdapter])
def test_answers_equal_the_slow_way(guidance, adapter):
    model = eager() if adapter is None else eager(adapter=adapter)
    with torch.no_grad():
        model.language_model.text_head.output.bias[model.tokenizer.id_of("<begin_of_sound>")] = -100.0
    images = [[], [picture(1)], [picture(2, 2), picture(3)]]
    answers = model.generate(PROMPTS, interleaved=True, images=images, **{**OPTIONS, "guidance": guidance})
    with torch.no_grad():
        shown = embed_given(model, [{"image": each} for each in images])
    expected = [slow(model, text, each, guidance) for text, each in zip(PROMPTS, shown, strict=True)]
    assert [plain(answer) for answer in answers] == expected
    assert sum(len(answer.items) for answer in answers) >= 3


def test_no_answer_minds_its_mates_or_the_batch(model):
    run = lambda prompts, **more: model.generate(prompts, interleaved=True, **{**OPTIONS, **more})  # noqa: E731
    together = run(PROMPTS)
    assert {type(part) for answer in together for part in answer.parts} == {str, Generated}
    assert len({item.modality for answer in together for item in answer.items}) == 2
    for max_rows in (1, 4):
        assert all(map(alike, together, run(PROMPTS, max_rows=max_rows)))
    for text, answer in zip(PROMPTS, together, strict=True):
        (alone,) = run(text)
        assert alike(alone, answer)
        assert (alone.prompt, alone.seed, alone.index) == (text, 5, 0)
    first, again = run(["why?", "why?"])
    assert alike(first, together[0])
    assert (again.index, alike(first, again)) == (1, False)
    assert not alike(run("why?", seed=6)[0], first)
    torch.manual_seed(1)
    assert alike(run("why?")[0], first)


def test_limits_hold_and_special_tokens_are_never_said(model):
    steer = switches(model)
    around = {
        model.tokenizer.id_of(f"<{side}_of_{name}>")
        for side in ("begin", "end")
        for name in ("image", "sound")
    }
    assert set(steer.begins) < around
    assert set(steer.silent) == {
        *(around - set(steer.begins)),
        *(
            model.tokenizer.id_of(token)
            for token in ("<s>", "<pad>", "<image_placeholder>", "<sound_placeholder>")
        ),
    }
    few = model.generate(PROMPTS, interleaved=True, **{**OPTIONS, "max_items": 1})
    assert [len(answer.items) for answer in few] == [1, 1, 1]
    (short,) = model.generate("why?", interleaved=True, max_new_tokens=1, text_temperature=0)
    assert len(short.parts) <= 1
    assert all(len(item.codes) == TOKENS for answer in few for item in answer.items)


def test_an_item_is_begun_only_where_it_fits(model):
    head = len(answer_prompt(model, "x", [], None, 0).conditional) - 1
    for free in range(1, 2 * TOKENS + 6):
        prompt = "x" * (POSITIONS - head - free)
        options = {**OPTIONS, "max_new_tokens": 90, "max_items": 9}
        (answer,) = model.generate(prompt, interleaved=True, **options)
        assert all(len(item.codes) == TOKENS for item in answer.items)
        assert len(answer.items) * (TOKENS + 1) <= free + 1
        assert free >= TOKENS or not answer.items
    with pytest.raises(RunFileError, match="shorten it"):
        model.generate("x" * POSITIONS, interleaved=True)


def test_events_tell_the_answer_as_it_comes(model):
    heard = []
    answers = model.generate(PROMPTS, interleaved=True, on_event=heard.append, **OPTIONS)
    for row, answer in enumerate(answers):
        parts: list[object] = []
        for event in (event for event in heard if isinstance(event, ItemStarted) or event.row == row):
            if event.row != row:
                continue
            if isinstance(event, TextPiece):
                assert event.text
                assert isinstance(parts[-1] if parts else None, (str, type(None), tuple))
                if parts and isinstance(parts[-1], str):
                    parts[-1] += event.text
                else:
                    parts.append(event.text)
            elif isinstance(event, ItemStarted):
                parts.append(event)
            else:
                started = parts.pop()
                assert started == ItemStarted(row, event.item.modality, event.item.index)
                parts.append((event.item.modality, event.item.codes.tolist()))
        assert parts == plain(answer)
    counts = Counter(type(event) for event in heard)
    assert counts[ItemStarted] == counts[ItemFinished] == sum(len(answer.items) for answer in answers)
    rows = [event.row for event in heard]
    assert rows != sorted(rows)  # the rows ran side by side


def test_pieces_are_whole_characters_and_make_the_text(model):
    text = "  Grüße, 世界! 👩‍👩‍👧 (done) … "
    ids = model.tokenizer.encode(text)
    spoken = Spoken(model.tokenizer.decode)
    pieces = [spoken.more(ids[: length + 1]) for length in range(len(ids))]
    assert "\ufffd" not in "".join(pieces)
    assert sum(map(bool, pieces)) > 10
    pieces.append(spoken.rest(ids))
    assert "".join(pieces) == spoken.text == text.strip()


@pytest.mark.parametrize("max_rows", [None, 1])
def test_ask_says_its_answers_piece_by_piece(max_rows):
    model = toy_model()
    heard: dict[int, list[str]] = {0: [], 1: []}
    options = {"max_new_tokens": 30, "temperature": 1.0, "max_rows": max_rows}
    said = model.ask(
        ["why?", "and how?"], on_text=lambda piece: heard[piece.row].append(piece.text), **options
    )
    assert ["".join(heard[row]) for row in (0, 1)] == said == model.ask(["why?", "and how?"], **options)
    assert all(len(pieces) > 1 for pieces in heard.values())
    single = []
    assert model.ask("why?", on_text=single.append, **options) == "".join(piece.text for piece in single)


@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_items_in_a_prompt_reach_the_item_that_is_made(model, guidance):
    images, options = [picture(1), picture(2, 7)], {"guidance": guidance, "num_per_prompt": 2, "seed": 5}
    made = model.generate(["go", "go on"], images=[images, []], return_codes=True, **options)
    with torch.no_grad():
        (shown,) = embed_given(model, [{"image": images}])
        seeds = [row_seed(5, "go", index) for index in (0, 1)]
        row = item_prompt(model, "image", "go", seeds, shown)
        assert [start for start, _ in row.items] == [
            place + 1
            for place, one in enumerate(row.unconditional)
            if one == model.tokenizer.id_of("<begin_of_image>")
        ][:2]
        expected = [naive_codes(model, row, seed, guidance=guidance, temperature=1.0)[0] for seed in seeds]
    assert torch.equal(made[:2], torch.stack(expected))
    assert torch.equal(made[2:], model.generate("go on", return_codes=True, **options))
    assert torch.equal(made[:2], model.generate("go", items={"image": images}, return_codes=True, **options))
    assert torch.equal(
        made[:2], model.generate("go", images=images, return_codes=True, max_rows=2, **options)
    )
    assert not torch.equal(made[:2], model.generate("go", images=images[::-1], return_codes=True, **options))
    assert not torch.equal(made[:2], model.generate("go", return_codes=True, **options))


def saved(model, answers, folder):
    """Write answers in order; return the names of all files, those of the indices last."""
    before = {path.name for path in folder.iterdir()} if folder.exists() else set()
    files = AnswerFiles(model, folder, [answer.prompt for answer in answers])
    for answer in answers:
        files.add(answer)
    indices = [path.name for path in files.close()]
    return [*sorted({path.name for path in folder.iterdir()} - before - set(indices)), *indices]


def test_files_and_an_index_hold_an_answer_in_order(model, tmp_path):
    answers = model.generate(PROMPTS, interleaved=True, **OPTIONS)
    paths = [tmp_path / name for name in saved(model, answers, tmp_path)]
    again = saved(model, answers, tmp_path)
    assert len(again) == len(paths)
    assert not {path.name for path in paths} & set(again)
    lines = [json.loads(line) for line in (tmp_path / "index.jsonl").read_text().splitlines()]
    names = iter([path.name for path in paths])
    page = (tmp_path / "index.md").read_text()
    for line, answer in zip(lines, answers, strict=True):
        assert line["prompt"] == answer.prompt
        for said, part in zip(line["parts"], answer.parts, strict=True):
            if isinstance(part, str):
                assert said == {"text": part}
            else:
                assert said == {"modality": part.modality, "file": next(names)}
                assert f"![{part.modality}]({said['file']})" in page
                assert (tmp_path / said["file"]).stat().st_size > 0
    assert [path.name for path in paths[-2:]] == ["index.jsonl", "index.md"]


@pytest.mark.parametrize("max_rows", [None, 2])
def test_answers_are_had_as_they_end(model, max_rows):
    heard = []
    returned = model.generate(
        PROMPTS, interleaved=True, on_event=heard.append, on_made=heard.append, max_rows=max_rows, **OPTIONS
    )
    made = [one for one in heard if isinstance(one, Interleaved)]
    assert {one.prompt: one for one in made} == {one.prompt: one for one in returned}
    for place, one in enumerate(heard):
        later = [other for other in heard[place:] if not isinstance(other, Interleaved)]
        if isinstance(one, Interleaved):
            assert all(PROMPTS[other.row] != one.prompt for other in later)
    assert not isinstance(heard[heard.index(made[0]) + 1], Interleaved), "the others were still in work"


def test_answers_that_ended_before_a_stop_are_in_files(model, tmp_path):
    files, told = AnswerFiles(model, tmp_path, PROMPTS), []

    def keep(answer):
        told.append(answer)
        files.add(answer)
        if len(told) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.generate(PROMPTS, interleaved=True, max_rows=2, on_made=keep, **OPTIONS)
    lines = [json.loads(line) for line in (tmp_path / "index.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == [one.prompt for one in told] == PROMPTS[:2]
    names = [part["file"] for line in lines for part in line["parts"] if "file" in part]
    assert len(names) == sum(len(one.items) for one in told) > 0
    assert {path.name for path in tmp_path.iterdir()} == {"index.jsonl", "index.md", *names}


@pytest.mark.parametrize(
    ("order", "told"),
    [([0, 1, 2], [True, True, True]), ([2, 0, 1], [False, True, True]), ([2, 1, 0], [False, False, True])],
)
def test_files_of_answers_are_alike_in_whatever_order_they_end(model, tmp_path, order, told):
    prompts = ["c", "why?", "c"]
    answers = model.generate(prompts, interleaved=True, **OPTIONS)
    expected = saved(model, answers, tmp_path / "once")
    files = AnswerFiles(model, tmp_path / "each", prompts)
    ready = [files.add(answers[place]) for place in order]
    indices = files.close()
    assert [path.name for path in indices] == expected[-2:]
    both = [tmp_path / folder for folder in ("once", "each")]
    once, each = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in both)
    assert once == each
    assert [bool(lines) for lines in ready] == told
    lines = [json.loads(line) for line in (tmp_path / "once" / "index.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == prompts
    parts = [part.get("text") or part["file"] for line in lines for part in line["parts"]]
    assert [line.rpartition("each/")[2] for lines in ready for line in lines] == parts


@pytest.mark.parametrize("written", [0, 1])
def test_an_answer_that_cannot_be_written_leaves_the_others(model, tmp_path, no_file_beyond, written):
    answers = [replace(one, parts=("words " * 99,)) for one in model.generate(PROMPTS, interleaved=True)]
    files = AnswerFiles(model, tmp_path, PROMPTS)
    for one in answers[:written]:
        files.add(one)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) == 2 * written
    with no_file_beyond(900), pytest.raises(DataError, match=r"cannot write to .*File too large"):
        files.add(replace(answers[written], parts=("words " * 200,)))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    files.add(answers[written])
    assert len((tmp_path / "index.jsonl").read_text().splitlines()) == written + 1


def test_files_carry_the_number_of_their_prompt(model, tmp_path):
    answers = model.generate(PROMPTS, interleaved=True, **OPTIONS)
    answers[0] = replace(answers[0], parts=("words alone",))
    assert answers[1].items
    numbers = {name.partition("_")[0] for name in saved(model, answers, tmp_path)}
    assert numbers == {"index.jsonl", "index.md", *(f"{at:04d}" for at in (1, 2) if answers[at].items)}


def test_an_answer_by_numbers_of_numpy_is_kept(model, tmp_path):
    options = {"max_new_tokens": np.int64(24), "max_items": np.int64(3), "text_temperature": np.float32(1)}
    chosen = {"guidance": np.int64(2), "temperature": np.float32(1), "seed": np.int64(5)}
    answers = model.generate(PROMPTS, interleaved=True, **options, **chosen)
    assert list(map(plain, answers)) == list(map(plain, model.generate(PROMPTS, interleaved=True, **OPTIONS)))
    saved(model, answers, tmp_path)
    assert json.loads((tmp_path / "index.jsonl").read_text().splitlines()[0])["seed"] == 5


def test_indices_that_cannot_be_put_into_order_stay_as_they_came(model, tmp_path, monkeypatch):
    answers = model.generate(PROMPTS, interleaved=True, **OPTIONS)
    files = AnswerFiles(model, tmp_path, PROMPTS)
    for answer in answers[::-1]:
        files.add(answer)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def breaking(path, text, encoding):
        path.write_bytes(b"half")
        raise OSError(28, "no space left")

    monkeypatch.setattr(Path, "write_text", breaking)
    with pytest.raises(DataError, match="no space left"):
        files.close()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": []}, "no prompt was given"),
        ({"max_items": 0}, "max_items is 0"),
        ({"text_temperature": -1.0}, "text_temperature is -1.0"),
        ({"top_p": 0.9}, "top_p is 0.9, but at text_temperature 0 the likeliest token is always taken"),
        ({"prompts": ["a", "b"], "images": [[]]}, "image: 1 entries for 2 prompts"),
        ({"items": {"sound": [1]}}, "cannot understand 'sound'"),
    ],
)
def test_refusals(model, options, message):
    with pytest.raises(RunFileError, match=message):
        model.generate(**{"prompts": "a cat", "interleaved": True, **options})


def test_generate_refuses_items_for_fewer_prompts(model):
    with pytest.raises(
        RunFileError, match="image: 3 entries for 2 prompts; give one list of items for each prompt"
    ):
        model.generate(["a", "b"], images=[[], [], []])


def test_the_page_names_every_option_and_its_default():
    page = (Path(__file__).parents[2] / "docs" / "generation.md").read_text(encoding="utf-8")
    options = inspect.signature(interleave).parameters
    told = {}
    for names, defaults in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ([^|]+) \|", page, flags=re.MULTILINE):
        values = defaults.split(", ") * (names.count(",") + 1)
        told.update(zip(re.findall(r"\w+", names), values, strict=False))
    for name, value in told.items():
        default = options[name].default
        assert value == (
            "the template's" if name == "system" else "none" if default is None else f"{default:g}"
        )
    assert set(options) - set(told) == {"model", "prompts", "seed", "max_rows", "linears"}
    for code in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        compile(code, "generation.md", "exec")
