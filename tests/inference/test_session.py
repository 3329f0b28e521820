"""What a user calls: shapes, order, seeds, files, and errors that say what to do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from janus_plugins.core.errors import BadSample, DataError, RunFileError
from janus_plugins.core.outputs import partial_file, sweep_files
from janus_plugins.inference import paths
from janus_plugins.inference.artefacts import slug
from janus_plugins.inference.decode import generate_items
from janus_plugins.inference.paths import embed_items
from janus_plugins.inference.prompts import item_prompt, question_prompt
from janus_plugins.inference.sampling import row_seed
from janus_plugins.inference.session import save_generated

from .naive import naive_text
from .toys import CODES, LATENT, POSITIONS, TOKENS, DrawProcessor, toy_model

PICTURE = np.random.default_rng(1).normal(size=(4, 3)).tolist()


@pytest.fixture(scope="module")
def model():
    return toy_model()


def items(*lengths: int) -> list[list[list[float]]]:
    """Return items of 3 numbers a slot, of the given lengths."""
    return [np.random.default_rng(length).normal(size=(length, 3)).tolist() for length in lengths]


def test_generate_returns_a_flat_list_in_the_order_of_the_prompts(model):
    made = model.generate(["a cat", "two dogs"], num_per_prompt=2, seed=3, guidance=2.0)
    assert [(one.prompt, one.index, one.seed) for one in made] == [
        ("a cat", 0, 3),
        ("a cat", 1, 3),
        ("two dogs", 0, 3),
        ("two dogs", 1, 3),
    ]
    assert all(one.artefact.size == (3, 2) for one in made)
    codes = model.generate(["a cat", "two dogs"], num_per_prompt=2, seed=3, guidance=2.0, return_codes=True)
    assert codes.dtype == torch.int64
    assert torch.equal(codes, torch.stack([one.codes for one in made]))
    again = model.decode("image", codes)
    assert [np.asarray(one).tolist() for one in again] == [np.asarray(one.artefact).tolist() for one in made]


def test_generate_lays_prompts_out_by_the_template(model):
    tokenizer = model.tokenizer
    row = item_prompt(model, "image", "a cat", [row_seed(0, "a cat", 0)])
    begin = tokenizer.id_of("<begin_of_image>")
    assert row.conditional == [tokenizer.id_of("<s>"), *tokenizer.encode("Q: a cat\nA:"), begin]
    assert row.unconditional == [
        row.conditional[0],
        *[tokenizer.id_of("<pad>")] * (len(row.conditional) - 2),
        begin,
    ]
    with torch.no_grad():
        expected = generate_items(model, "image", [row])
    assert torch.equal(model.generate("a cat", return_codes=True), expected)


def test_an_image_is_a_function_of_prompt_seed_and_number(model):
    def hot(prompts, **options):
        return model.generate(prompts, temperature=3.0, return_codes=True, **options)

    four = hot("a cat", num_per_prompt=4)
    assert torch.equal(hot("a cat", num_per_prompt=2), four[:2])
    assert torch.equal(hot(["a much longer prompt", "a cat"], num_per_prompt=4)[4:], four)
    assert torch.equal(hot(["a cat", "b", "a cat"], num_per_prompt=2)[[0, 1, 4, 5]], four)
    assert torch.equal(hot("a cat", num_per_prompt=4, max_rows=2), four)
    assert len({tuple(row) for row in four.tolist()}) == 4
    assert not torch.equal(hot("a cat", num_per_prompt=4, seed=1), four)
    torch.manual_seed(99)
    assert torch.equal(hot("a cat", num_per_prompt=4), four)


def test_greedy_images_of_one_prompt_are_alike(model):
    two = model.generate("a cat", num_per_prompt=2, temperature=0, return_codes=True)
    assert torch.equal(two[0], two[1])


def test_latents_go_the_same_road(model):
    made = model.generate("a bell", modality="sound", num_per_prompt=2)
    assert made[0].codes.shape == (TOKENS, LATENT)
    assert made[0].artefact.shape == (TOKENS * LATENT,)


def test_ask_answers_one_or_many_and_minds_no_mates(model):
    first, second = (
        model.ask("why?", max_new_tokens=6),
        model.ask("and how, in many words?", max_new_tokens=6),
    )
    assert isinstance(first, str)
    assert model.ask(["why?", "and how, in many words?"], max_new_tokens=6) == [first, second]
    ids = [model.tokenizer.id_of("<s>"), *model.tokenizer.encode("Q: why?\nA:")]
    with torch.no_grad():
        expected = naive_text(model, ids, model.tokenizer.id_of("</s>"), 6)
    assert first == model.tokenizer.decode(expected).strip()


def test_items_of_different_lengths_answer_as_they_do_alone(model, tmp_path):
    short, long, third = items(2, 9, 4)
    file = tmp_path / "third.json"
    file.write_text(json.dumps(third))
    questions = ["one?", "two images?", "none?"]
    images = [[short], [long, str(file)], []]
    together = model.ask(questions, images=images, max_new_tokens=8)
    options = {"max_new_tokens": 8}
    assert together == [
        model.ask(question, images=shown, **options)
        for question, shown in zip(questions, images, strict=True)
    ]
    assert len(set(together)) == 3
    assert model.ask("two images?", items={"image": [long, third]}, **options) == together[1]
    assert model.ask("two images?", images=[third, long], **options) != together[1]
    assert model.ask(["one?"], images=[str(file)], **options) == [
        model.ask("one?", images=[third], **options)
    ]


def test_items_stand_where_the_question_marks_them(model):
    long, third = items(2, 9, 4)[1:]
    options = {"images": [long, third], "max_new_tokens": 8}
    before = model.ask("two images?", **options)
    assert model.ask("<image><image_placeholder>\ntwo images?", **options) == before
    assert model.ask("<image>two<image>images?", **options) != before
    with pytest.raises(BadSample, match="'<image>' marks 1 places with <image> for 2 items"):
        model.ask(["<image>"], images=[[long, third]])


@pytest.mark.parametrize("mark", ["<image>", "<image_placeholder>"])
def test_a_mark_without_an_item_is_no_text(model, mark):
    message = (
        f"'what is {mark}?' marks 1 places with {mark} for 0 items; give it as many (--input image=FILE)"
    )
    question = f"what is {mark}?"
    for call in (
        lambda: model.ask(question),
        lambda: model.ask(["a", question]),
        lambda: model.generate(question),
        lambda: model.generate(question, interleaved=True),
    ):
        with pytest.raises(BadSample, match=re.escape(message)):
            call()
    assert isinstance(model.ask("what is <sound>?", max_new_tokens=2), str)  # which it does not understand
    said = model.ask(question, items={}, max_new_tokens=5)
    assert model.ask(["a", question], images=[[PICTURE], []], max_new_tokens=5)[1] == said
    model.generate(question, images=[])


@pytest.mark.parametrize("parts", [[[0, 1], [2, 3, 4, 5]], [[0, 3], [1, 2, 4, 5]], [[5], [0, 1, 2, 3, 4]]])
def test_a_call_can_be_made_in_parts(model, parts):
    prompts, shown = ["a", "a", "b"], {"images": [[], [PICTURE], []]}
    drawn = {"temperature": 1.0, "seed": 3}
    whole = model.generate(prompts, num_per_prompt=2, **shown, **drawn)
    made = {}
    for part in parts:
        made |= zip(part, model.generate(prompts, num_per_prompt=2, only=part, **shown, **drawn), strict=True)
    for place, one in enumerate(whole):
        assert (one.prompt, one.index) == (made[place].prompt, made[place].index)
        assert torch.equal(one.codes, made[place].codes)
    said = model.ask(prompts, max_new_tokens=5, **shown, **drawn)
    heard = []
    pieces = {"on_text": heard.append, "max_new_tokens": 5}
    assert model.ask(prompts, only=[1, 2], **pieces, **shown, **drawn) == said[1:]
    assert {piece.row for piece in heard} <= {1, 2}


@pytest.mark.parametrize("only", [[], [0, 0], [1, 0], [2], [-1], [0.5], [True], 1, [[0]], np.ones(2, bool)])
def test_parts_of_a_call_are_places_in_order(model, only):
    with pytest.raises(RunFileError, match=r"only is .*; it takes places"):
        model.generate(["a", "b"], only=only)


def test_parts_of_a_call_may_be_numpys_numbers(model):
    wanted = np.flatnonzero(np.array([False, True, True]))
    codes = model.generate(["a", "b", "c"], return_codes=True)
    assert model.generate(["a", "b", "c"], return_codes=True, only=wanted).equal(codes[1:])
    assert [one.index for one in model.generate("a", num_per_prompt=3, only=list(wanted))] == [1, 2]


def test_items_are_embedded_alone_and_placed_in_their_order(model):
    short, long, third = (np.asarray(item, np.float32) for item in items(2, 9, 4))
    with torch.no_grad():
        expected = [
            model.understanding["image"]({"values": torch.from_numpy(item)[None]}, [len(item)])[0]
            for item in (short, long, third)
        ]
        embedded = embed_items(model, "image", [{"values": item} for item in (short, long, third)])
        for one, other in zip(embedded, expected, strict=True):
            torch.testing.assert_close(one, other)
        shown = [("image", expected[1]), ("image", expected[0])]
        row = question_prompt(model, "two?", shown, None, 0)
        starts = [start for start, _ in row.items]
        around = [
            [row.ids[start - 1], row.ids[start + len(one)]]
            for start, (_, one) in zip(starts, shown, strict=True)
        ]
        assert around == [[model.tokenizer.id_of(f"<{edge}_of_image>") for edge in ("begin", "end")]] * 2
        assert starts[1] == starts[0] + 9 + 2
        said = naive_text(
            model, row.ids, model.tokenizer.id_of("</s>"), 8, list(zip(starts, expected[1::-1], strict=True))
        )
    assert model.ask("two?", images=[long, short], max_new_tokens=8) == model.tokenizer.decode(said).strip()
    assert model.ask("two?", images=[short, long], max_new_tokens=8) != model.tokenizer.decode(said).strip()


def test_ask_samples_by_seed_and_takes_a_system_prompt(model):
    def run(**options):
        return model.ask("why?", max_new_tokens=12, **options)

    sampled = run(temperature=2.0)
    assert run(temperature=2.0) == sampled
    assert run(temperature=2.0, seed=1) != sampled
    assert run(temperature=2.0, top_p=1e-6) == run()
    assert run(system="be brief") != run()


def test_encode_and_decode_are_inverse(model):
    codes = torch.tensor([[0, 1, 2, 3, 4, 5], [10, 9, 8, 7, 6, 5]])
    images = model.decode("image", codes)
    assert images[0].size == (3, 2)
    assert torch.equal(model.encode("image", images), codes)
    assert torch.equal(model.encode("image", model.decode("image", codes.to(torch.uint8))), codes)
    assert model.encode("image", images * 20).shape == (40, TOKENS)


def test_training_modes_and_gradients_are_as_before(model):
    model.train()
    model.understanding.eval()
    before = [module.training for module in model.modules()]
    model.generate("a cat")
    with pytest.raises(BadSample):
        model.ask("why?", images=["missing.json"])
    assert [module.training for module in model.modules()] == before
    assert torch.is_grad_enabled()
    model.eval()


def test_files_carry_their_making_and_overwrite_nothing(model, tmp_path):
    made = model.generate(["a cat/../x", "日本 ☺"], num_per_prompt=2, seed=5, guidance=2.5)
    paths = save_generated(model, made, tmp_path / "out")
    names = ["0000_00_a-cat-x.png", "0000_01_a-cat-x.png", "0001_00_日本.png", "0001_01_日本.png"]
    assert [path.name for path in paths] == names
    saved = Image.open(paths[3])
    assert saved.text == {
        "prompt": "日本 ☺",
        "seed": "5",
        "index": "1",
        "guidance": "2.5",
        "temperature": "1.0",
        "model": "toy",
    }
    assert np.array_equal(np.asarray(saved), np.asarray(made[3].artefact))
    content = paths[0].read_bytes()
    again = save_generated(model, made[:1], tmp_path / "out")
    assert again[0].name == "0000_00_a-cat-x-1.png"
    assert paths[0].read_bytes() == content
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write to"):
        save_generated(model, made, tmp_path / "file" / "out")


def test_items_are_had_as_they_are_made(model, monkeypatch):
    expected = model.generate(["a", "b"], num_per_prompt=3, guidance=2.0)
    made, runs = [], []
    sample = model.generation["image"].head.sample

    def counted(*arguments, **options):
        runs.append(len(made))
        return sample(*arguments, **options)

    monkeypatch.setattr(model.generation["image"].head, "sample", counted)
    returned = model.generate(["a", "b"], num_per_prompt=3, guidance=2.0, max_rows=4, on_made=made.append)
    assert returned == made
    assert [(one.prompt, one.index) for one in made] == [(one.prompt, one.index) for one in expected]
    assert all(torch.equal(one.codes, other.codes) for one, other in zip(made, expected, strict=True))
    assert sorted(set(runs)) == [0, 2, 4]  # a batch is handed over before the next one runs
    with pytest.raises(RunFileError, match="return_codes decodes nothing"):
        model.generate("a", return_codes=True, on_made=made.append)


def test_a_call_that_is_stopped_has_given_its_items(model):
    made = []

    def stop(one):
        made.append(one)
        if len(made) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.generate("a", num_per_prompt=9, max_rows=2, on_made=stop)
    assert [one.index for one in made] == [0, 1, 2]
    assert model.generate("a", num_per_prompt=3)[2].artefact == made[2].artefact


def test_some_items_of_a_call_keep_its_numbers(model, tmp_path):
    made = model.generate(["a", "b"])
    paths = save_generated(model, made[1:], tmp_path, prompts=["a", "b"])
    assert [path.name for path in paths] == ["0001_00_b.png"]
    others = save_generated(model, made, tmp_path / "others", prompts=["b"])
    assert [path.name for path in others] == ["0001_00_a.png", "0000_00_b.png"]


@pytest.mark.parametrize("fault", [OSError(28, "no space left"), KeyboardInterrupt()])
def test_no_file_is_left_half_written(model, tmp_path, monkeypatch, fault):
    made = model.generate(["a"], num_per_prompt=2)
    write, calls = DrawProcessor.write, iter(range(2))

    def breaking(self, artefact, path, metadata):
        if next(calls):
            Path(path).write_bytes(b"half")
            raise fault
        write(self, artefact, path, metadata)

    monkeypatch.setattr(DrawProcessor, "write", breaking)
    with pytest.raises(KeyboardInterrupt if isinstance(fault, KeyboardInterrupt) else DataError):
        save_generated(model, made, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["0000_00_a.png"]


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])

from inference.toys import toy_model
from janus_plugins.inference.session import save_generated

model, place, event = toy_model(), sys.argv[2], sys.argv[3]
made = model.generate(["a"])

def kill(seen, args):
    if seen == event and place in os.fsdecode(args[0] if isinstance(args[0], (str, bytes)) else str(args[0])):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
save_generated(model, made, place)
"""


@pytest.mark.parametrize("event", ["os.rename", "os.link", "os.remove"])
def test_one_that_is_killed_leaves_whole_files_and_nothing_after_the_next(tmp_path, event):
    """Not an empty file under a name either, and what is hidden goes when the folder is next written to."""
    tests = str(Path(__file__).parents[1])
    words = [sys.executable, "-c", KILLED, tests, str(tmp_path), event]
    subprocess.run(words, check=False, capture_output=True)
    for path in tmp_path.glob("[!.]*"):
        with Image.open(path) as picture:
            assert picture.size == (3, 2)
    ours = partial_file(tmp_path, "b", ".png")
    others = tmp_path / ".b.0a1b2c3d-1-0a1b2c3d.tmp.png"  # of another machine
    for path in (ours, others, tmp_path / ".mine.tmp.png"):
        path.touch()
    sweep_files(tmp_path)
    hidden = {path.name for path in tmp_path.iterdir() if path.name.startswith(".")}
    assert hidden == {ours.name, others.name, ".mine.tmp.png"}


def test_files_are_named_where_a_file_has_one_name_alone(model, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    made = model.generate(["a"])
    names = [save_generated(model, made, tmp_path)[0].name for _ in range(2)]
    assert names == ["0000_00_a.png", "0000_00_a-1.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_a_file_has_its_name_only_when_it_is_whole(model, tmp_path, monkeypatch):
    """A launcher, or a scheduler at its limit of time, sends SIGTERM: nothing is cleaned up then."""
    write, seen = DrawProcessor.write, []

    def watched(self, artefact, path, metadata):
        Path(path).write_bytes(b"half")
        seen.append([name.name for name in tmp_path.iterdir() if not name.name.startswith(".")])
        write(self, artefact, path, metadata)

    monkeypatch.setattr(DrawProcessor, "write", watched)
    save_generated(model, model.generate(["a"], num_per_prompt=2), tmp_path)
    assert seen == [[], ["0000_00_a.png"]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0000_00_a.png", "0000_01_a.png"]


def test_a_name_is_short_and_safe():
    assert slug("../../etc/passwd\0") == "etc-passwd"
    assert slug("!?") == "item"
    assert len(slug("word " * 100)) <= 40


LONG = "x" * POSITIONS


def test_numbers_of_numpy_are_numbers(model):
    number, whole = np.float32, np.int64
    made = model.generate(
        "a",
        num_per_prompt=whole(2),
        guidance=whole(2),
        temperature=number(0.5),
        seed=whole(3),
        max_rows=whole(4),
    )
    plain = model.generate("a", num_per_prompt=2, guidance=2, temperature=0.5, seed=3, max_rows=4)
    assert [one.codes.tolist() for one in made] == [one.codes.tolist() for one in plain]
    assert json.dumps([made[0].seed, made[0].guidance, made[0].temperature]) == "[3, 2, 0.5]"
    options = {"max_new_tokens": whole(4), "temperature": number(1), "top_p": number(0.5), "seed": whole(3)}
    assert model.ask("a", **options) == model.ask("a", max_new_tokens=4, temperature=1, top_p=0.5, seed=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": []}, "no prompt was given"),
        ({"prompts": ["a", 3]}, "prompt 1 is a int, not a text"),
        (
            {"modality": "imge"},
            r"cannot generate 'imge'; it can generate: image, sound\. Did you mean 'image'",
        ),
        ({"prompts": None}, "prompt is None; give a text, or a list of texts"),
        ({"prompts": 3}, "prompt is 3; give a text"),
        ({"window": 4}, "window is 4, but decoding 'steps' has none"),
        ({"num_per_prompt": 0}, "num_per_prompt is 0; it must be a whole number of at least 1"),
        ({"max_rows": 0}, "max_rows is 0"),
        ({"guidance": -1.0}, "guidance is -1.0; it must be a number of at least 0"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"guidance": "1"}, "guidance is '1'; it must be a number of at least 0"),
        ({"num_per_prompt": "2"}, "num_per_prompt is '2'; it must be a whole number of at least 1"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": 1e-40}, "temperature is 1e-40; it must be 0, or from 1e-6 to 1e6"),
        ({"guidance": 1e39}, r"guidance is 1e\+39; it must be 0, or from 1e-6 to 1e6"),
        *[
            ({"seed": seed}, f"seed is {seed!r}; it must be a whole number")
            for seed in ("abc", None, 1.5, True)
        ],
        ({"interleaved": True, "seed": 1.5}, "seed is 1.5; it must be a whole number"),
        ({"prompts": LONG}, f"takes {POSITIONS + 8} positions and what follows 5, .* only {POSITIONS}"),
    ],
)
def test_generate_refuses(model, options, message):
    with pytest.raises(RunFileError, match=message):
        model.generate(**{"prompts": "a cat", **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"question": ()}, "no question was given"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -0.5}, "temperature is -0.5"),
        ({"top_p": 0.0}, "top_p is 0.0; it must be above 0"),
        ({"top_p": "0.9"}, "top_p is '0.9'; it must be above 0"),
        ({"top_p": 0.9}, "top_p is 0.9, but at temperature 0 .*; set temperature above 0, or leave"),
        ({"seed": "abc"}, "seed is 'abc'; it must be a whole number"),
        ({"items": {"audio": [[1, 2, 3]]}}, "cannot understand 'audio'; it can understand: image"),
        ({"question": ["a", "b"], "images": [[[1, 2, 3]]]}, "image: 1 entries for 2 questions"),
        ({"images": [[1, 2, 3]], "items": {"image": []}}, "both as images= and in items="),
        ({"items": ["x.wav"]}, r"items is \['x.wav'\]; give them by modality, {'image': \[...\]}, say"),
        ({"system": 5}, "system is 5; it must be a text"),
        ({"question": LONG}, f"takes {POSITIONS + 7} positions, but .* only {POSITIONS}"),
        ({"question": None}, "question is None; give a text, or a list of texts"),
    ],
)
def test_ask_refuses(model, options, message):
    with pytest.raises(RunFileError, match=message):
        model.ask(**{"question": "why?", **options})


@pytest.mark.parametrize("seed", [-3, 2**70, np.int64(4)])
def test_any_whole_number_is_a_seed(model, seed):
    assert model.generate("a cat", seed=seed)[0].seed == seed
    assert model.ask("why?", seed=seed, max_new_tokens=1) == model.ask("why?", max_new_tokens=1)


def test_items_that_cannot_be_read_are_named(model):
    with pytest.raises(BadSample, match=r"missing\.json"):
        model.ask("why?", images=["missing.json"])
    with pytest.raises(BadSample, match=r"item 1, a str, cannot be read by toy \(generation.image.encoder\)"):
        model.encode("image", [Image.new("L", (3, 2)), "no image"])


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(1, 5, dtype=torch.long), r"decode takes \[N, 6\], got \[1, 5\]"),
        (torch.full((1, 6), CODES), f"codes run from 0 to {CODES - 1}, but these from {CODES} to {CODES}"),
        (torch.zeros(1, 6), "whole numbers, got torch.float32"),
        (torch.zeros(1, 6, dtype=torch.bool), "whole numbers, got torch.bool"),
        (torch.zeros(0, 6, dtype=torch.long), r"got \[0, 6\]"),
    ],
)
def test_decode_refuses(model, codes, message):
    with pytest.raises(RunFileError, match=message):
        model.decode("image", codes)


@pytest.mark.parametrize(
    ("have", "named", "meant"),
    [
        (["pulse"], None, "pulse"),
        (["sound", "image"], None, "image"),
        (["image"], None, "image"),
        (["sound", "pulse"], "sound", "sound"),
    ],
)
def test_what_is_made_is_the_only_modality_or_images(have, named, meant):
    assert paths.made_modality(generating(have), named) == meant


@pytest.mark.parametrize(
    ("have", "named", "message"),
    [
        (["sound", "pulse"], None, "generates pulse, sound; say which one: modality='pulse', say"),
        (["pulse"], "image", "cannot generate 'image'; it can generate: pulse"),
        ([], None, "cannot generate 'image'; it can generate: nothing"),
    ],
)
def test_what_is_made_must_be_known(have, named, message):
    with pytest.raises(RunFileError, match=message):
        paths.made_modality(generating(have), named)


def generating(modalities):
    generation = dict.fromkeys(modalities)
    return SimpleNamespace(plan=SimpleNamespace(model=SimpleNamespace(generation=generation)))


def test_a_processor_that_there_is_not_is_said(model):
    with pytest.raises(RunFileError, match="cannot generate 'radar'"):
        model.processor("radar")


def test_encode_refuses_an_unknown_modality_and_nothing(model):
    with pytest.raises(RunFileError, match="it can generate: image, sound"):
        model.encode("text", [1])
    with pytest.raises(RunFileError, match="at least one item"):
        model.encode("image", [])
