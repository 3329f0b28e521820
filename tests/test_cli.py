"""The command line as a user meets it: outputs, exit codes, and one small run from end to end."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from PIL import Image

from janus_plugins import cli
from janus_plugins.core.errors import CheckpointError
from janus_plugins.core.outputs import replaced
from janus_plugins.core.runfile import load_run
from janus_plugins.core.schema import TokenizerBlock
from janus_plugins.sequence.templates import special_tokens
from janus_plugins.sequence.tokenizers import build_tokenizer
from tests.tiny import write_tiny


def run(*words: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "janus_plugins", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
        stdin=subprocess.DEVNULL,
        check=False,
    )


def called(*words: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process: what it says and its exit code, without importing torch again."""
    out, err = io.StringIO(), io.StringIO()
    given, code = [str(word) for word in words], 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["janus-plugins", *given])
        patch.setenv("HF_HUB_OFFLINE", "1")
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
    return subprocess.CompletedProcess(given, code, out.getvalue(), err.getvalue())


def answer(*words: object) -> str:
    done = called(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_of_every_verb():
    verbs = re.findall(r"^│ (\w+) ", answer("--help"), flags=re.MULTILINE)
    assert {"plugins", "validate", "explain", "train", "generate", "ask", "evaluate", "schema"} <= set(verbs)
    for verb in verbs:
        assert "Usage:" in answer(verb, "--help")


def test_the_help_of_convert_says_what_may_be_there():
    said = " ".join(answer("convert", "--help").replace("│", " ").split())
    assert "it must not exist, or be empty" in said


def test_the_version_is_asked_for_without_a_command():
    assert answer("--version") == "0.1.0\n"


def test_ctrl_c_is_told(monkeypatch):
    def pressed(run, overrides):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_plan", pressed)
    done = called("validate", "digits")
    assert done.returncode == 130
    assert "interrupted" in done.stderr


def test_plugins_as_table_and_json():
    assert "siglip" in answer("plugins")
    reports = json.loads(answer("plugins", "--json"))
    own = next(report for report in reports if report["distribution"] == "janus-plugins")
    assert own["status"] == "ok"
    assert {("language_model", "llama"), ("understanding_encoder", "siglip")} <= {
        (one["kind"], one["name"]) for one in own["components"]
    }


def test_explain_as_json(tmp_path):
    told = json.loads(answer("explain", write_tiny(tmp_path), "--json"))
    assert [stage["name"] for stage in told["stages"]] == ["tokenizer", "adapters", "finetune"]
    assert told["total"] == sum(part["parameters"] for part in told["parts"])
    assert set(told["stages"][0]["memory"]) == {"ZeRO 0", "ZeRO 1", "ZeRO 2", "ZeRO 3"}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["validate", "nowhere.yaml"], 2, "nowhere.yaml"),
        (["validate", "digits", "--set", "sed=1"], 2, "seed"),
        (["validate", "digits", "--set", "model.understanding.image.encoder.use=siglop"], 3, "siglip"),
        (["generate", "nowhere", "--prompt", "a", "--out", "x"], 4, "nowhere"),
        (["ask", "nowhere", "--question", "a", "--top-p", "0.9"], 2, "give --temperature above 0"),
        (["validate"], 2, "Missing argument"),
        (["walidate", "digits"], 2, "walidate"),
    ],
)
def test_errors_are_one_message_and_a_code(words, code, message):
    done = called(*words)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", ["bytes", "pretrained"])
def test_a_tokenizer_of_more_entries_than_the_model_embeds_is_seen_before_training(kind, tmp_path):
    path = write_tiny(tmp_path)
    block = "{type: bytes}"
    if kind == "pretrained":
        bytewise = build_tokenizer(TokenizerBlock(type="bytes"), special_tokens(load_run(path).model))
        bytewise.save(str(tmp_path / "own"))
        block = f"{{type: pretrained, path: {tmp_path / 'own'}}}"
    base = ["--set", f"model.language_model.tokenizer={block}"]
    told = (
        "language_model.tokenizer has 262 entries, special tokens included, but the language model embeds 64"
    )
    for verb in (["validate", path], ["train", path, "--out", tmp_path / "out"]):
        done = called(*verb, *base)
        assert done.returncode == 2
        assert told in done.stderr
    assert (
        called("validate", path, *base, "--set", "model.language_model.options.vocab_size=262").returncode
        == 0
    )


def test_debug_shows_the_traceback():
    done = run("validate", "nowhere.yaml", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(("value", "shown"), [("", False), ("0", False), ("1", True)])
def test_the_variable_for_tracebacks_is_a_switch_like_the_others(value, shown, monkeypatch):
    monkeypatch.setenv("JANUS_PLUGINS_DEBUG", value)
    assert ("Traceback" in called("validate", "nowhere.yaml").stderr) == shown


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    done = run("train", write_tiny(folder), "--out", folder / "run")
    assert done.returncode == 0, done.stderr
    assert "understanding" in done.stdout
    return folder / "run"


def test_a_run_leaves_its_results(trained):
    result = json.loads((trained / "evaluation.json").read_text())
    assert {"understanding", "generation", "ceilings", "seconds_per_stage"} <= set(result)
    assert set(result["seconds_per_stage"]) == {"tokenizer", "adapters", "finetune"}
    assert 0.9 < result["ceilings"]["generation"]["real"] <= 1.0
    report = (trained / "report.html").read_text()
    assert "<svg" in report
    assert "data:image/png;base64" in report
    with Image.open(trained / "samples.png") as picture:
        assert picture.size[0] > 100


@pytest.mark.parametrize(("stage", "number"), [("adapters", 1), ("finetune", 2)])
def test_a_stage_alone_is_evaluated_if_it_is_the_last(trained, tmp_path, stage, number):
    for name in ("start", f"stage_{number - 1}"):
        shutil.copytree(trained / "checkpoints" / name, tmp_path / "checkpoints" / name)
    answer("train", trained.parent / "tiny.yaml", "--stage", stage, "--out", tmp_path)
    assert (tmp_path / "evaluation.json").exists() == (stage == "finetune")


def test_generate_writes_pictures_with_their_prompt(trained, tmp_path):
    words = ["--prompt", "a handwritten two", "--num", 2, "--guidance", 2, "--out"]
    first = answer("generate", trained, *words, tmp_path / "one").split()
    again = answer("generate", trained, *words, tmp_path / "two").split()
    assert len(first) == 2
    for one, other in zip(first, again, strict=True):
        with Image.open(one) as picture, Image.open(other) as same:
            assert picture.text["prompt"] == "a handwritten two"
            assert picture.tobytes() == same.tobytes()


def test_generate_keeps_what_was_made_until_it_is_stopped(trained, tmp_path, monkeypatch):
    from janus_plugins.inference import paths

    decode, calls = paths.decode_items, iter(range(9))

    def stopped(*arguments):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return decode(*arguments)

    monkeypatch.setattr(paths, "decode_items", stopped)
    words = ["--prompt", "a handwritten one", "--prompt", "a handwritten two", "--num", 2, "--max-rows", 2]
    done = called("generate", trained, *words, "--out", tmp_path)
    assert done.returncode == 130
    assert "interrupted" in done.stderr
    names = ["0000_00_a-handwritten-one.png", "0000_01_a-handwritten-one.png"]
    assert done.stdout.split() == [str(tmp_path / name) for name in names]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.txt", "\ufeffa handwritten two\r\n\n  a handwritten one \na handwritten two"),
        ("list.jsonl", '{"tag": "x", "prompt": "a handwritten two"}\n{"prompt": "a handwritten one"}\n\n'
         '{"prompt": "a handwritten two"}\n'),
    ],
)  # fmt: skip
def test_prompts_may_stand_in_a_file(trained, tmp_path, monkeypatch, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    words = [word for which in ("two", "one", "two") for word in ("--prompt", f"a handwritten {which}")]
    wanted = answer("generate", trained, *words, "--num", 2, "--out", tmp_path / "words").split()
    assert [Path(path).name for path in wanted[-2:]] == [f"0000_0{n}_a-handwritten-two.png" for n in (2, 3)]
    monkeypatch.setattr(cli, "_AT_ONCE", 3)
    words = ["--prompts", tmp_path / name, "--num", 2, "--out", tmp_path / "file"]
    assert [Path(path).name for path in answer("generate", trained, *words).split()] == [
        Path(path).name for path in wanted
    ]
    for path in wanted:
        with Image.open(path) as picture, Image.open(tmp_path / "file" / Path(path).name) as same:
            assert picture.text == same.text
            assert picture.tobytes() == same.tobytes()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("none.txt", None, "it takes a file with a prompt a line, --prompt one prompt"),
        ("blank.txt", b" \n\n", "it holds no prompt"),
        ("latin.txt", "a caf\u00e9".encode("latin-1"), "not text in UTF-8"),
        ("cut.jsonl", b'{"prompt": "a"}\n{"prompt"', "line 2: no JSON"),
        ("other.jsonl", b'{"text": "a"}\n', 'line 1: no text under "prompt"'),
        ("list.json", b'[\n {"prompt": "a"}\n]\n', "line 1: no JSON"),
    ],
)
def test_a_file_of_prompts_that_cannot_be_read(tmp_path, name, content, told):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    bad = called("generate", "nowhere", "--prompts", tmp_path / name, "--out", tmp_path / "out")
    assert bad.returncode == 2
    assert bad.stderr.startswith(f"error: --prompts {tmp_path / name}")
    assert told in bad.stderr
    assert not (tmp_path / "out").exists()


def test_generate_needs_a_prompt(tmp_path):
    bad = called("generate", "nowhere", "--out", tmp_path)
    assert bad.returncode == 2
    assert "give --prompt TEXT, or --prompts FILE" in bad.stderr


@pytest.mark.parametrize("interleaved", [False, True])
def test_ranks_of_a_launcher_generate_a_share_each(trained, tmp_path, monkeypatch, interleaved):
    from janus_plugins.evaluation import ranks
    from janus_plugins.training.world import World

    words = ["--prompt", "a handwritten two", "--prompt", "a handwritten one", "--num", 2]
    if interleaved:
        words += ["--interleaved", "--max-new-tokens", 4, "--max-items", 1]
    answer("generate", trained, *words, "--out", tmp_path / "alone")
    monkeypatch.setattr(World, "together", lambda self, work: work())
    for rank in range(3):
        world = World(rank, 3, torch.device("cpu"))
        monkeypatch.setattr(ranks, "open_ranks", lambda device, world=world: (world, "cpu"))
        answer("generate", trained, *words, "--out", tmp_path / "shared")

    def pictures(folder):
        return {path.name: path.read_bytes() for path in (tmp_path / folder).glob("*.png")}

    def answers(folder):
        lines = [path.read_text().splitlines() for path in sorted((tmp_path / folder).glob("index*.jsonl"))]
        return sorted(line for each in lines for line in each)

    assert pictures("shared") == pictures("alone")
    assert answers("shared") == answers("alone")
    assert len(answers("alone") if interleaved else pictures("alone")) == 4


def test_ask_about_a_picture_and_without(trained, tmp_path):
    Image.new("RGB", (20, 10), "white").save(tmp_path / "white.png")
    said = answer("ask", trained, "--image", tmp_path / "white.png", "--question", "Which digit is this?",
                  "--max-new-tokens", 3)  # fmt: skip
    assert said.endswith("\n")
    by_input = answer("ask", trained, "--input", f"image={tmp_path / 'white.png'}", "--question",
                      "Which digit is this?", "--max-new-tokens", 3)  # fmt: skip
    assert by_input == said
    answer("ask", trained, "--question", "Put in order: two one", "--max-new-tokens", 2)
    bad = called("ask", trained, "--input", "white.png", "--question", "What?")
    assert bad.returncode == 2
    assert "MODALITY=FILE" in bad.stderr


def test_generate_from_a_picture_and_interleaved(trained, tmp_path):
    Image.new("RGB", (8, 8), "white").save(tmp_path / "white.png")
    shown = ["--image", tmp_path / "white.png", "--prompt", "a handwritten two"]
    plain = answer("generate", trained, *shown[2:], "--out", tmp_path / "plain").split()
    changed = answer("generate", trained, *shown, "--out", tmp_path / "changed").split()
    assert len(plain) == len(changed) == 1
    words = [
        "--interleaved",
        "--num",
        2,
        "--max-new-tokens",
        5,
        "--max-items",
        1,
        "--out",
        tmp_path / "mixed",
    ]
    said = answer("generate", trained, *shown, *words).splitlines()
    assert said[-2:] == [str(tmp_path / "mixed" / f"index{suffix}") for suffix in (".jsonl", ".md")]
    lines = [json.loads(line) for line in (tmp_path / "mixed" / "index.jsonl").read_text().splitlines()]
    assert [(line["prompt"], line["index"]) for line in lines] == [
        ("a handwritten two", 0),
        ("a handwritten two", 1),
    ]
    parts = [part for line in lines for part in line["parts"]]
    assert said[:-2] == [
        line
        for part in parts
        for line in (part.get("text") or str(tmp_path / "mixed" / part["file"])).splitlines()
    ]
    bad = called("generate", trained, *shown, *words, "--modality", "image")
    assert bad.returncode == 2
    assert "leave it out" in bad.stderr


def test_an_interleaved_answer_is_kept_once_it_has_ended(trained, tmp_path, monkeypatch):
    from janus_plugins.inference import switching

    run, calls = switching._Batch.run, iter(range(9))

    def stopped(batch):
        if next(calls) == 2:
            raise KeyboardInterrupt
        run(batch)

    monkeypatch.setattr(switching._Batch, "run", stopped)
    words = ["--interleaved", "--num", 3, "--max-rows", 2, "--max-new-tokens", 3, "--out", tmp_path]
    done = called("generate", trained, "--prompt", "a handwritten two", *words)
    assert done.returncode == 130
    lines = [json.loads(line) for line in (tmp_path / "index.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == [0, 1]
    parts = [part for line in lines for part in line["parts"]]
    assert done.stdout.split() == [
        word for part in parts for word in (part.get("text") or str(tmp_path / part["file"])).split()
    ]


@pytest.mark.parametrize(
    "words",
    [
        ["--interleaved", "--modality", "image"],
        ["--interleaved", "--compile"],
        ["--interleaved", "--decoding", "steps"],
        ["--interleaved", "--window", 4],
        ["--max-new-tokens", 512],
        ["--max-items", 4],
        ["--text-temperature", 0],
    ],
)
def test_generate_refuses_options_that_its_way_does_not_read(words):
    bad = called("generate", "nowhere", "--prompt", "a", "--out", "x", *words)
    assert bad.returncode == 2, bad.stderr
    option = next(word for word in words if word != "--interleaved")
    assert bad.stderr.startswith(f"error: {option}")
    assert "leave it out" in bad.stderr
    assert ("--interleaved" in bad.stderr) == ("--interleaved" not in words)


def test_a_question_that_marks_an_image_needs_one(trained, tmp_path):
    for words in (
        ("ask", trained, "--question", "Which digit is <image>?"),
        ("generate", trained, "--prompt", "Which digit is <image>?", "--out", tmp_path),
    ):
        done = called(*words)
        assert done.returncode == 1
        assert "marks 1 places with <image> for 0 items; give it as many (--input image=FILE)" in done.stderr


def test_evaluate_one_task(trained, tmp_path):
    told = json.loads(answer("evaluate", trained, "understanding", "--json", "--out", tmp_path))
    assert told["details"]["understanding"]["samples"] == 4
    assert "generation" not in told
    assert json.loads((tmp_path / "evaluation.json").read_text()) == told
    wrong = called("evaluate", trained, "understandin")
    assert wrong.returncode == 2
    assert "understanding" in wrong.stderr


def test_a_place_that_cannot_be_written_is_told_before_the_work(trained, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for worker in (
        "evaluation.runner._run_task",
        "training.precompute._encoders",
        "inference.session.generate_items",
        "inference.interleaved.write_answers",
    ):
        monkeypatch.delattr(f"janus_plugins.{worker}")
    for words in (
        ("schema", "--out", tmp_path / "nowhere" / "schema.json"),
        ("evaluate", trained, "understanding", "--out", tmp_path / "file" / "out"),
        ("precompute", trained.parent / "tiny.yaml", "--out", tmp_path / "file"),
        ("generate", trained, "--prompt", "a handwritten seven", "--out", tmp_path / "file"),
        ("generate", trained, "--prompt", "a", "--interleaved", "--out", tmp_path / "file"),
    ):
        done = called(*words)
        assert done.returncode == 2, done.stderr
        assert f"{words[-1]} cannot be written: " in done.stderr
        assert "with --out" in done.stderr


def test_two_writers_of_one_file_leave_a_whole_one(tmp_path):
    path = tmp_path / "evaluation.json"
    with replaced(path) as first:
        first.write_text("first")
        with replaced(path) as second:
            second.write_text("sec")
            assert first.read_text() == "first"
        assert path.read_text() == "sec"
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("evaluation.json", "first")]


def test_a_schema_that_cannot_be_written_whole_leaves_the_one_before(tmp_path):
    (tmp_path / "schema.json").write_text("{}")
    done = subprocess.run(
        [sys.executable, "-m", "janus_plugins", "schema", "--out", tmp_path / "schema.json"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),  # as a disk that fills up
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "schema.json cannot be written: File too large" in done.stderr
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("schema.json", "{}")]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_output_that_has_no_room_is_told():
    with Path("/dev/full").open("w") as full:
        words = [sys.executable, "-m", "janus_plugins", "schema"]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "No space left on device\nwhat is written to is full; make room" in done.stderr
    assert "this is a bug" not in done.stderr


def test_the_exit_code_stays_where_nobody_reads_the_error(monkeypatch):
    class Gone:
        def write(self, _):
            raise BrokenPipeError(32, "Broken pipe")

        flush = write

    monkeypatch.setattr(sys, "stderr", Gone())
    with pytest.raises(SystemExit) as end:
        cli._fail(KeyboardInterrupt(), 130, False, "interrupted")
    assert end.value.code == 130


def test_a_device_that_is_not_there_is_told(trained):
    import torch

    for device in ("quantum", "cuda:7") if torch.cuda.is_available() else ("quantum", "cuda"):
        done = called("ask", trained, "--question", "Which?", "--device", device)
        assert done.returncode == 2
        assert f"device '{device}' cannot be used here: " in done.stderr
        assert "choose another one, such as cpu" in done.stderr


def test_starting_again_needs_resume_or_another_folder(trained):
    run_file = trained.parent / "tiny.yaml"
    again = called("train", run_file, "--out", trained)
    assert again.returncode == 4
    assert "--resume" in again.stderr
    finished = called("train", run_file, "--out", trained, "--resume", "--no-evaluate")
    assert finished.returncode == 0, finished.stderr


def test_what_one_ranks_machine_refuses_is_said_there(monkeypatch, capsys):
    common, own = CheckpointError("all know this"), CheckpointError("part-1 could not be written")
    own.__cause__ = OSError(28, "No space left on device")
    monkeypatch.setenv("RANK", "3")
    for error in (common, own):
        with pytest.raises(SystemExit):
            cli._fail(error, 4, debug=False)
    assert capsys.readouterr().err == "error on rank 3: part-1 could not be written\n"
