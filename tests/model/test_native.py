"""Native folders: round trips, and every kind of damage refused by name."""

from __future__ import annotations

import json

import pytest
import torch

import janus_plugins as jp
from janus_plugins.core.errors import CheckpointError, PluginError
from janus_plugins.model.native import load_native, save_native


@pytest.fixture
def folder(model, tmp_path):
    model.save(tmp_path / "model")
    return tmp_path / "model"


def test_round_trip_is_bit_identical(model, folder):
    loaded = jp.load(folder)
    state, other = model.state_dict(), loaded.state_dict()
    assert set(state) == set(other)
    assert all(torch.equal(state[name], other[name]) for name in state)
    assert loaded.tokenizer.encode("Put in order: two one") == model.tokenizer.encode("Put in order: two one")
    assert loaded.plan.run == model.plan.run
    assert loaded.ask("Put in order: two one", max_new_tokens=3) == model.ask(
        "Put in order: two one", max_new_tokens=3
    )


def test_no_pickle_and_provenance(folder):
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "config.yaml", "manifest.json", "model.safetensors", "provenance.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    parts = json.loads((folder / "provenance.json").read_text())["parts"]
    assert parts["understanding.image.encoder"]["component"] == "understanding_encoder/siglip"
    assert parts["understanding.image.encoder"]["distribution"] == "janus-plugins"


def test_a_flipped_byte_is_refused_in_every_file(folder):
    for path in sorted(folder.iterdir()):
        if path.name == "manifest.json":
            continue
        before = path.read_bytes()
        middle = len(before) // 2
        path.write_bytes(before[:middle] + bytes([before[middle] ^ 1]) + before[middle + 1 :])
        with pytest.raises(CheckpointError, match=path.name):
            load_native(folder)
        path.write_bytes(before)
    load_native(folder)


def test_a_missing_file_and_a_foreign_folder_are_refused(folder, tmp_path):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        load_native(folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="no native checkpoint"):
        jp.load(tmp_path / "other")


def test_saving_never_overwrites_something_else(model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not empty"):
        save_native(model, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_saving_again_replaces_as_a_whole(model, folder):
    save_native(model, folder)
    load_native(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_wrong_tensors_are_named(model, folder):
    state = dict(model.state_dict())
    name = "language_model.model.norm.weight"
    cut = {key: value for key, value in state.items() if key != name}
    save_native(model, folder, {**cut, "nobody": torch.zeros(1)})
    with pytest.raises(CheckpointError) as caught:
        load_native(folder)
    assert f"missing tensor {name}" in str(caught.value)
    assert "unknown tensor nobody" in str(caught.value)
    save_native(model, folder, {**state, name: torch.zeros(5)})
    with pytest.raises(CheckpointError, match=r"shape \[5\]"):
        load_native(folder)


def test_a_missing_plugin_is_reported_with_its_distribution(model, folder):
    import hashlib

    config = (folder / "config.yaml").read_text().replace("use: siglip", "use: siglip-of-someone")
    (folder / "config.yaml").write_text(config)
    made_by = json.loads((folder / "provenance.json").read_text())
    made_by["parts"]["understanding.image.encoder"] |= {"distribution": "someones-encoders", "version": "2.1"}
    (folder / "provenance.json").write_text(json.dumps(made_by))
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in ("config.yaml", "provenance.json"):
        manifest["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(PluginError, match=r"pip install someones-encoders==2\.1"):
        load_native(folder)


def test_shards_come_back(model, folder, monkeypatch):
    monkeypatch.setattr("janus_plugins.model.native.SHARD_BYTES", 20_000)
    save_native(model, folder)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    loaded = load_native(folder)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
