"""Published weights: what is read, what is refused, and that every key counts."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from janus_plugins.core.errors import CheckpointError, PluginError
from janus_plugins.core.weights import load_exactly, read_weights
from janus_plugins.door import compose
from tests.tiny import write_tiny

TENSORS = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.ones(2)}


def assert_same(found):
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize("name", ["model.safetensors", "open_clip_model.safetensors", "anything.safetensors"])
def test_safetensors(tmp_path, name):
    save_file(TENSORS, tmp_path / name)
    assert_same(read_weights(str(tmp_path)))
    assert_same(read_weights(str(tmp_path / name)))


@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        lambda t: {"model": t, "steps": 3},
        lambda t: {"state_dict": t},
        lambda t: {"base_model": t, "metrics": {"acc": 0.9}},
    ],
)
def test_pickles_of_tensors(tmp_path, wrap):
    torch.save(wrap(TENSORS), tmp_path / "vq.pt")
    assert_same(read_weights(str(tmp_path / "vq.pt")))


def test_shards(tmp_path):
    save_file({"weight": TENSORS["weight"]}, tmp_path / "a.safetensors")
    save_file({"bias": TENSORS["bias"]}, tmp_path / "b.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"weight": "a.safetensors", "bias": "b.safetensors"}}))
    assert_same(read_weights(str(tmp_path)))
    index.write_text(json.dumps({"weight_map": {"weight": "../a.safetensors"}}))
    with pytest.raises(CheckpointError, match="outside its folder"):
        read_weights(str(tmp_path))
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="index of weights"):
        read_weights(str(tmp_path))


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_that_holds_more_is_refused_and_not_run(tmp_path):
    torch.save({"weight": Evil(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin cannot be read"):
        read_weights(str(tmp_path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (None, None, "no weight file"),
        ("model.safetensors", b"", "cannot be read"),
        ("model.safetensors", b"\xff" * 64, "cannot be read"),
        ("weights.txt", b"x", "no weight file"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, name, content, message):
    if name is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_weights(str(tmp_path))


def test_several_files_without_an_index_are_ambiguous(tmp_path):
    for name in ("a.safetensors", "b.safetensors"):
        save_file(TENSORS, tmp_path / name)
    with pytest.raises(CheckpointError, match="holds 2 weight files"):
        read_weights(str(tmp_path))


def test_what_is_not_there_is_named():
    with pytest.raises(CheckpointError, match="/nowhere/at/all"):
        read_weights("/nowhere/at/all")


def test_loading_fills_in_place():
    layer = nn.Linear(3, 2, dtype=torch.bfloat16)
    before = layer.weight
    load_exactly(layer, TENSORS, "there")
    assert layer.weight is before
    assert layer.weight.dtype == torch.bfloat16
    assert torch.equal(layer.weight.float(), TENSORS["weight"])


def test_every_key_is_accounted_for():
    layer = nn.Linear(3, 2)
    before = layer.weight.clone()
    tensors = {"weight": torch.zeros(3, 2), "stray": torch.zeros(1), "known": torch.zeros(1)}
    message = "1 missing (bias); 1 unexpected (stray); 1 of another shape (weight (3, 2) instead of (2, 3))"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        load_exactly(layer, tensors, "there", drop=("known",))
    assert torch.equal(layer.weight, before)
    load_exactly(layer, {"weight": TENSORS["weight"]}, "there", optional=("bias",))


@pytest.mark.parametrize("name", ["nope.pt", "$NOPE/vq.pt", "no-one/nothing"])
def test_weights_that_are_not_there_name_part_and_line(tmp_path, monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    run = write_tiny(tmp_path)
    run.write_text(run.read_text().replace("{use: siglip,", f"{{use: siglip, weights: {name},"))
    with pytest.raises(CheckpointError) as raised:
        compose(run)
    said = str(raised.value)
    place = f"{run}:12: understanding.image.encoder: weights: there is no file or folder '{name}', nor such"
    assert said.startswith(place)
    assert "\n" not in said
    assert ("environment variables are not expanded: write what $NOPE stands for" in said) == ("$" in name)


def test_what_a_component_raises_while_it_loads_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr("janus_plugins.encoders.siglip.model.read_weights", lambda source: {}["vit"])
    with pytest.raises(
        PluginError, match=r"siglip of janus-plugins .*loading weights 'x' failed.*KeyError: 'vit'"
    ):
        compose(write_tiny(tmp_path), ["model.understanding.image.encoder.weights=x"])
