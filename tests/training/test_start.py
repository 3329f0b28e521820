"""Training starts from the weights of another model, and refuses those of a different one."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from janus_plugins.core.errors import CheckpointError
from janus_plugins.door import plan as read_plan
from janus_plugins.model.compose import compose_plan
from janus_plugins.model.native import load_native, save_native
from janus_plugins.model.start import take_weights
from janus_plugins.training.run import train
from tests.tiny import write_tiny

from .runs import weights


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
        start=lambda model: take_weights(model, load_native(folder), str(folder)),
        console=Console(file=io.StringIO()),
    )
    ends = weights(tmp_path, 0)
    learnt = {name for name in ends if name.startswith("generation.image.encoder.")}
    table = "generation.image.adapter.table.weight"  # taken from the codebook that was trained
    for name, value in given.named_parameters():
        assert torch.equal(ends[name], value.float()) == (name not in learnt | {table}), name


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
