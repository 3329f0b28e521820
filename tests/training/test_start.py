"""Training starts from the weights of another model, and refuses those of a different one."""

from __future__ import annotations

import errno
import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from janus_plugins.core.errors import CheckpointError, RunFileError
from janus_plugins.door import plan as read_plan
from janus_plugins.evaluation.runner import start_with
from janus_plugins.model import native
from janus_plugins.model.compose import compose_plan
from janus_plugins.model.native import load_native, save_native
from janus_plugins.model.start import take_weights
from janus_plugins.model.unified import UnifiedModel
from janus_plugins.training import plan_recipe as recipes
from janus_plugins.training.checkpoint import Checkpoints
from janus_plugins.training.plan_recipe import Start, plan_recipe
from janus_plugins.training.run import train
from tests.tiny import write_tiny

from .runs import Crash, assert_same, weights


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def folder(run_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the tiny model with another seed's weights, kept in 16 bits as the published ones are."""
    target = tmp_path_factory.mktemp("published") / "model"
    save_native(compose_plan(read_plan(run_file, ["seed=9"])).to(torch.bfloat16), target)
    return target


def test_the_first_stage_starts_from_a_checkpoint(run_file: Path, folder: Path, tmp_path: Path) -> None:
    given = load_native(folder)
    train(
        read_plan(run_file),
        tmp_path,
        only_stage="tokenizer",
        start=Start("there", lambda model: take_weights(model, load_native(folder), "there")),
        console=Console(file=io.StringIO()),
    )
    ends = weights(tmp_path, 0)
    learnt = {name for name in ends if name.startswith("generation.image.encoder.")}
    table = "generation.image.adapter.table.weight"  # taken from the codebook that was trained
    for name, value in given.named_parameters():
        assert torch.equal(ends[name], value.float()) == (name not in learnt | {table}), name


@pytest.mark.parametrize("given_again", [True, False])
def test_resuming_reads_no_weights_of_what_the_run_began_with(
    given_again: bool, run_file: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_and_die(*given: Any) -> None:
        save_step(*given)
        raise Crash

    def gone(*given: object, **named: object) -> None:
        raise AssertionError("read again")

    plan, save_step = read_plan(run_file, ["engine.save_every=1"]), Checkpoints.save_step
    there = Start("there", lambda model: take_weights(model, load_native(folder), "there"))
    options: dict[str, Any] = {"only_stage": "tokenizer", "console": Console(file=io.StringIO())}
    train(plan, tmp_path / "whole", start=there, **options)
    monkeypatch.setattr(Checkpoints, "save_step", save_and_die)
    with pytest.raises(Crash):
        train(plan, tmp_path / "out", start=there, **options)
    monkeypatch.undo()
    again = replace(there, give=gone) if given_again else None
    composed: list[bool] = []

    def compose(*given: Any, weights: bool) -> UnifiedModel:
        composed.append(weights)
        return compose_plan(*given, weights=weights)

    monkeypatch.setattr(recipes, "compose_plan", compose)
    train(plan, tmp_path / "out", start=again, resume=True, **options)
    assert composed == [False]
    assert_same(weights(tmp_path / "out", 0), weights(tmp_path / "whole", 0))


def test_another_size_is_refused_with_both(run_file: Path, folder: Path) -> None:
    wider = compose_plan(read_plan(run_file, ["model.language_model.options.intermediate_size=96"]))
    with pytest.raises(CheckpointError, match=r"mlp\.\w+_proj\.weight is \(64, 32\).*has \(96, 32\)"):
        take_weights(wider, load_native(folder), "there")


def test_other_parts_are_refused_by_name(run_file: Path, folder: Path) -> None:
    deeper = compose_plan(read_plan(run_file, ["model.language_model.options.num_layers=3"]))
    with pytest.raises(CheckpointError, match=r"there lacks language_model\.model\.layers\.2\."):
        take_weights(deeper, load_native(folder), "there")


def test_another_tokenizer_is_refused(run_file: Path, folder: Path) -> None:
    spelt = compose_plan(read_plan(run_file))
    spelt.tokenizer = _Shifted(spelt.tokenizer)  # type: ignore[assignment]
    with pytest.raises(CheckpointError, match=r"has id \d+ in its tokenizer and \d+ in the run's"):
        take_weights(spelt, load_native(folder), "there")


def test_options_that_change_what_weights_mean_are_warned_of(
    run_file: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    take_weights(compose_plan(read_plan(run_file)), load_native(folder), "there")
    assert not caplog.records
    change = "model.understanding.image.encoder.options.normalize=false"
    take_weights(compose_plan(read_plan(run_file, [change])), load_native(folder), "there")
    (record,) = caplog.records
    assert record.message == (
        "there: understanding.image.encoder: normalize was True there and is False in the run"
    )


class _Shifted:
    """The same tokenizer with every id one later."""

    def __init__(self, inner: object) -> None:
        self._inner = inner

    def id_of(self, token: str) -> int:
        return self._inner.id_of(token) + 1  # type: ignore[attr-defined]


def words(folder: Path, *lines: str) -> Path:
    """A run file whose words come from a file of text."""
    (folder / "words.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    path = folder / "words.yaml"
    path.write_text(
        WORDS.replace("WORDS", str(folder / "words.txt")),
        encoding="utf-8",
    )
    return path


WORDS = """
name: words
model:
  language_model:
    use: llama
    options: {vocab_size: 64, hidden_size: 32, intermediate_size: 64, num_layers: 1, num_heads: 2, max_positions: 64}
    tokenizer: {type: trained, level: word, vocab_size: 64}
    template: plain
data:
  said: {use: hf-dataset, task: text, options: {path: WORDS, columns: {text: "{text}"}}}
stages:
  - {name: one, learn: {language_model: 1.0e-2}, mix: {text: 1}, steps: 2, batch: 4, max_length: 32}
  - {name: two, learn: {language_model: 1.0e-2}, mix: {text: 1}, steps: 2, batch: 4, max_length: 32}
"""
FIRST = ("beta gamma", "gamma delta", "delta beta", "beta beta")
MORE = (*FIRST, "aardvark beta", "aardvark aardvark")


def quiet() -> Console:
    return Console(file=io.StringIO())


def test_a_run_keeps_the_tokenizer_that_it_began_with(tmp_path: Path) -> None:
    out = tmp_path / "out"
    train(read_plan(words(tmp_path, *FIRST)), out, only_stage="one", console=quiet())
    before = load_native(out / "model").tokenizer.vocabulary()  # type: ignore[attr-defined]
    longer = read_plan(words(tmp_path, *MORE))
    assert plan_recipe(longer).save_start is not None
    train(longer, out, only_stage="two", console=quiet())
    assert load_native(out / "model").tokenizer.vocabulary() == before  # type: ignore[attr-defined]
    (out / "checkpoints/start/tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json has 2 bytes"):
        train(longer, out, resume=True, console=quiet())
    (out / "checkpoints/start/tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        train(longer, out, resume=True, console=quiet())
    shutil.rmtree(out / "checkpoints/start")
    with pytest.raises(CheckpointError, match=r"stage_1 builds on start .*, which is gone"):
        train(longer, out, resume=True, console=quiet())


def test_a_model_that_cannot_be_written_is_written_on_resuming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "model.safetensors")

    plan, out = read_plan(words(tmp_path, *FIRST)), tmp_path / "out"
    message = r"(?s)model could not be written: .*No space left.*checkpoints are intact.* go on with --resume"
    monkeypatch.setattr(native, "_write", full)
    with pytest.raises(CheckpointError, match=message):
        train(plan, out, console=quiet())
    monkeypatch.undo()
    (out / "model").mkdir()
    (out / "model" / "mine.txt").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"is not empty.*\n.*move away what is in the way"):
        train(plan, out, resume=True, console=quiet())
    shutil.rmtree(out / "model")
    train(plan, out, resume=True, console=quiet())
    train(plan, tmp_path / "whole", console=quiet())
    ends = [load_native(folder / "model").state_dict() for folder in (out, tmp_path / "whole")]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_a_run_that_begins_anew_trains_its_tokenizer_anew(tmp_path: Path) -> None:
    out = tmp_path / "out"
    train(read_plan(words(tmp_path, *FIRST)), out, only_stage="one", console=quiet())
    shutil.rmtree(out / "checkpoints/stage_0")  # as if it had died before
    longer = read_plan(words(tmp_path, *MORE))
    train(longer, out, only_stage="one", console=quiet())
    assert "aardvark" in load_native(out / "model").tokenizer.vocabulary()  # type: ignore[attr-defined]


def test_a_stage_of_a_run_without_stages_is_refused(run_file: Path, tmp_path: Path) -> None:
    plan = read_plan(run_file)
    empty = replace(plan, run=plan.run.model_copy(update={"stages": ()}))
    with pytest.raises(RunFileError, match="has no stages"):
        train(empty, tmp_path, only_stage="one", console=quiet())


def test_words_trained_anew_are_not_put_on_another_models_embeddings(tmp_path: Path) -> None:
    out = tmp_path / "out"
    train(read_plan(words(tmp_path, *FIRST)), out, only_stage="one", console=quiet())
    other, longer = load_native(out / "model"), read_plan(words(tmp_path, *MORE))
    with pytest.raises(CheckpointError, match=r"'.*' has id \d+ in its tokenizer and \d+ in the run's"):
        take_weights(compose_plan(longer), other, "there")
    start = start_with(out, resume=False)
    model = plan_recipe(longer, start=start).build(True)
    assert torch.equal(next(model.parameters()), next(other.parameters()))
    assert model.tokenizer.vocabulary() == other.tokenizer.vocabulary()  # type: ignore[union-attr, operator, attr-defined]


def test_a_model_to_start_from_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder"):
        start_with(tmp_path / "none", resume=False)
    assert start_with(tmp_path / "none", resume=True).tokenizer is None
