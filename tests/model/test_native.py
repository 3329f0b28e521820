"""Native folders: round trips, and every kind of damage refused by name."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pydantic import BaseModel, Field, computed_field, create_model, field_validator
from torch import nn
from transformers import LlamaConfig

import janus_plugins as jp
from janus_plugins.conversion.checkpoint import open_checkpoint
from janus_plugins.core.catalogue import Catalogue, CatalogueEntry, catalogue
from janus_plugins.core.errors import CheckpointError, PluginError, RunFileError
from janus_plugins.core.kinds import Kind
from janus_plugins.core.plan import Owner
from janus_plugins.core.runfile import load_run
from janus_plugins.core.specs import ComponentConfig
from janus_plugins.core.wiring import resolve
from janus_plugins.encoders.siglip.spec import SiglipConfig
from janus_plugins.evaluation.runner import evaluate_model
from janus_plugins.model import native
from janus_plugins.model.compose import compose_plan
from janus_plugins.model.native import load_native, save_native
from janus_plugins.model.tensor_file import TensorFile
from tests.tiny import write_tiny


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


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_default_device_of_torchs_is_no_matter(model, folder, device, tmp_path):
    with torch.device(device):
        loaded = load_native(folder)
        loaded.save(str(tmp_path / "again"))
    expected = model.state_dict()
    for name, value in [*loaded.state_dict().items(), *load_native(tmp_path / "again").state_dict().items()]:
        assert torch.equal(value, expected[name])


def test_no_pickle_and_provenance(folder):
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "config.yaml", "manifest.json", "model.safetensors", "provenance.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    parts = json.loads((folder / "provenance.json").read_text())["parts"]
    assert parts["understanding.image.encoder"]["component"] == "understanding_encoder/siglip"
    assert parts["understanding.image.encoder"]["distribution"] == "janus-plugins"


def test_whoever_may_read_the_config_may_read_the_weights(folder):
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def test_what_a_killed_writer_left_is_removed(model, tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left, others = tmp_path / f".model.tmp-{gone.pid}", tmp_path / f".model.tmp-{os.getppid()}"
    for folder in (left, others):
        folder.mkdir()
        (folder / "model.safetensors").touch()
    model.save(tmp_path / "model")
    assert not left.exists()
    assert others.exists()


@pytest.mark.parametrize("renamed", [1, 2])
def test_a_writer_killed_between_two_names_loses_nothing(model, tmp_path, renamed):
    """Neither the checkpoint nor what a user put there, which the next save finds again."""
    target = tmp_path / "model"
    model.save(target)
    (target / "notes.txt").write_text("mine")
    child = os.fork()
    if child == 0:
        left, rename = iter(range(renamed)), Path.rename

        def die(path, name):
            return rename(path, name) if next(left) + 1 < renamed else os._exit(9)

        Path.rename = die
        save_native(model, target)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert target.exists() == (renamed == 1)
    model.save(target)
    load_native(target)
    assert (target / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


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


@pytest.mark.parametrize("names", [["manifest.json", "precious.txt"], ["manifest.json", "model.safetensors"]])
def test_a_manifest_alone_makes_no_native_checkpoint(model, tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match="not empty and no native checkpoint"):
        save_native(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_saving_again_replaces_as_a_whole(model, folder):
    save_native(model, folder)
    load_native(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_saving_again_keeps_what_the_user_put_there(model, folder):
    (folder / "README.md").write_text("a card")
    (folder / "pictures").mkdir()
    (folder / "pictures" / "one.txt").write_text("1")
    (folder / "model-00001-of-00002.safetensors").write_text("a shard of no checkpoint")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"]["model-00001-of-00002.safetensors"] = "of an earlier save"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    save_native(model, folder)
    assert (folder / "README.md").read_text() == "a card"
    assert (folder / "pictures" / "one.txt").read_text() == "1"
    assert not (folder / "model-00001-of-00002.safetensors").exists()
    load_native(folder)


def test_a_copy_of_former_weights_beside_the_model_is_not_loaded(model, folder, tmp_path):
    """Saving again keeps a user's files, and so must not read them as the model's."""
    (folder / "model_before.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    name = "language_model.model.norm.weight"
    state[name] += 1
    save_native(model, folder, state)
    assert (folder / "model_before.safetensors").exists()
    assert torch.equal(jp.load(folder).state_dict()[name], state[name])
    jp.convert(folder, tmp_path / "again")
    assert torch.equal(jp.load(tmp_path / "again").state_dict()[name], state[name])


@pytest.fixture
def replacing(model, folder, monkeypatch):
    """Replace the folder after the first tensor that is read of a file, as a run does at the end of a stage."""
    get = TensorFile.get

    def start(times: int) -> dict[str, torch.Tensor]:
        new = {name: value + 1 for name, value in model.state_dict().items()}
        read: list[TensorFile] = []

        def get_and_replace(self, name):
            tensor = get(self, name)
            if len(read) < times and self not in read:
                read.append(self)
                save_native(model, folder, new)
            return tensor

        monkeypatch.setattr(TensorFile, "get", get_and_replace)
        return new

    return start


def test_a_folder_that_is_replaced_while_it_is_read_is_read_anew(folder, replacing):
    new, loaded = replacing(1), jp.load(folder).state_dict()
    assert all(torch.equal(loaded[name], new[name]) for name in new)


def test_a_folder_that_is_replaced_again_and_again_is_refused(folder, replacing):
    replacing(10_000)
    with pytest.raises(CheckpointError, match="was replaced by another checkpoint while it was read"):
        jp.load(folder)


def test_a_model_that_is_away_while_another_takes_its_place_is_waited_for(model, folder, tmp_path):
    old = tmp_path / f".model.old-{os.getpid()}"
    folder.rename(old)
    back = threading.Timer(0.2, lambda: old.rename(folder))
    back.start()
    assert jp.load(tmp_path).plan.run == model.plan.run  # as of a run's folder
    back.join()
    folder.rename(old)
    with pytest.raises(
        CheckpointError, match=r"model was being replaced .* lies in .*\.old-\d+: go on with --res"
    ):
        jp.load(folder)
    with pytest.raises(CheckpointError, match="model was being replaced"):
        jp.load(tmp_path)
    model.save(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_is_replaced_while_it_is_converted_is_no_mixture(folder, replacing, tmp_path):
    new = replacing(1)
    with pytest.raises(CheckpointError, match="was replaced by another checkpoint while it was read"):
        jp.convert(folder, tmp_path / "converted")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    jp.convert(folder, tmp_path / "converted")
    loaded = jp.load(tmp_path / "converted").state_dict()
    assert all(torch.equal(loaded[name], new[name]) for name in new)


@pytest.mark.parametrize("address", ["language_model", "generation.image.encoder"])
@pytest.mark.parametrize("inner", [".", "model"])
def test_a_whole_model_given_as_a_parts_weights_is_told_as_such(folder, tmp_path, address, inner):
    source = (folder.parent / inner).resolve()
    run = load_run(write_tiny(tmp_path), [f"model.{address}.weights={source}"])
    with pytest.raises(CheckpointError, match=rf"{source} is a whole trained model: .*--from {source}"):
        compose_plan(resolve(run))


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("at", [1, 2])
def test_saving_that_is_broken_off_leaves_a_whole_checkpoint(model, folder, monkeypatch, error, at):
    rename, calls = Path.rename, []

    def stop(self, target):
        calls.append(target)
        if len(calls) == at:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stop)
    with pytest.raises(CheckpointError if error is OSError else error):
        save_native(model, folder)
    load_native(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("shard", [native.SHARD_BYTES, 150_000])
def test_a_full_disk_leaves_the_former_checkpoint(model, folder, monkeypatch, no_file_beyond, shard):
    monkeypatch.setattr(native, "SHARD_BYTES", shard)
    with no_file_beyond(100_000), pytest.raises(CheckpointError, match=r"File too large.* free space"):
        save_native(model, folder)
    load_native(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_saving_through_a_link_replaces_what_it_names(model, folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    (folder / "model.safetensors").unlink()
    save_native(model, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    load_native(folder)


@pytest.mark.parametrize("name", [".", ".."])
def test_the_current_directory_is_not_replaced(model, tmp_path, monkeypatch, name):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(CheckpointError, match="where this program runs; name a folder below it"):
        save_native(model, name)
    with pytest.raises(CheckpointError, match="where this program runs"):
        jp.convert("anywhere", name)


def test_threads_load_at_a_time(model, folder):
    with ThreadPoolExecutor(3) as threads:
        loaded = list(threads.map(jp.load, [folder] * 9))
    assert not nn.Linear(2, 2).weight.is_meta
    state = model.state_dict()
    assert all(torch.equal(other.state_dict()[name], state[name]) for other in loaded for name in state)


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


def edited(folder, old, new, made_by=None):
    """Rewrite a folder's config.yaml, and its provenance, as whoever made it would have."""
    import hashlib

    config = (folder / "config.yaml").read_text()
    assert old in config
    (folder / "config.yaml").write_text(config.replace(old, new))
    if made_by is not None:
        (folder / "provenance.json").write_text(json.dumps(made_by))
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in ("config.yaml", "provenance.json"):
        manifest["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_missing_plugin_is_reported_with_its_distribution(model, folder):
    made_by = json.loads((folder / "provenance.json").read_text())
    made_by["parts"]["understanding.image.encoder"] |= {"distribution": "someones-encoders", "version": "2.1"}
    edited(folder, "use: siglip", "use: siglip-of-someone", made_by)
    with pytest.raises(PluginError, match=r"pip install someones-encoders==2\.1"):
        load_native(folder)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("use: digits", "use: digits-of-someone", "no source is called 'digits-of-someone'"),
        (" ask: understanding", " asked: understanding", "asked"),  # a version that has it no more
    ],
)
def test_a_model_answers_without_the_plugin_of_its_data(model, folder, old, new, message):
    edited(folder, old, new)
    loaded = load_native(folder)
    assert loaded.ask("What is it?", max_new_tokens=2) == model.ask("What is it?", max_new_tokens=2)
    with pytest.raises((PluginError, RunFileError), match=rf"data.read_test.*{message}"):
        evaluate_model(loaded, ("understanding",))
    loaded.save(folder)
    assert new in (folder / "config.yaml").read_text()


@pytest.mark.parametrize(
    "dtype",
    [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32, torch.uint64, torch.complex64],
)
def test_what_a_folder_keeps_it_gives_back(plan, tmp_path, dtype):
    model = compose_plan(plan)
    encoder = model.understanding["image"].encoder
    encoder.register_buffer("codes", torch.arange(6).to(dtype))
    save_native(model, tmp_path / "model")
    encoder.codes = torch.zeros(6).to(dtype)
    native.load_tensors(model, tmp_path / "model")
    assert torch.equal(encoder.codes.view(torch.uint8), torch.arange(6).to(dtype).view(torch.uint8))


def test_a_dtype_that_no_folder_keeps_is_refused_when_it_is_saved(model, folder):
    state = {**model.state_dict(), "waves": torch.zeros(2, dtype=torch.complex128)}
    with pytest.raises(CheckpointError, match=r"waves is of torch\.complex128"):
        save_native(model, folder, state)
    load_native(folder)


def test_tensors_that_lie_over_one_another_are_saved_each(plan, tmp_path):
    model = compose_plan(plan)
    encoder = model.understanding["image"].encoder
    weight = next(encoder.parameters())
    encoder.flat = nn.Parameter(weight.data.view(-1))
    encoder.register_buffer("end", weight.data.view(-1)[1:])
    save_native(model, tmp_path / "model")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        weight.zero_()
    encoder.flat, encoder.end = nn.Parameter(encoder.flat.data.clone()), encoder.end.clone()
    native.load_tensors(model, tmp_path / "model")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_buffers_keep_their_precision_too(tmp_path):
    """Codebooks that are buffers, of 32 bits beside layers of 16, could not be used."""
    model = jp.compose("tones").to(torch.bfloat16)
    save_native(model, tmp_path / "model")
    loaded = jp.load(tmp_path / "model")
    state, other = model.state_dict(), loaded.state_dict()
    assert {name: value.dtype for name, value in other.items()} == {
        name: value.dtype for name, value in state.items()
    }
    assert all(torch.equal(value, other[name]) for name, value in state.items())
    codes = torch.arange(model.plan.model.generation["audio"].facts.tokens)[None, :, None].expand(1, -1, 4)
    sound, before = loaded.decode("audio", codes)[0], model.eval().decode("audio", codes)[0]
    assert sound.tolist() == before.tolist()


def test_shards_come_back(model, folder, monkeypatch):
    monkeypatch.setattr("janus_plugins.model.native.SHARD_BYTES", 20_000)
    save_native(model, folder)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    loaded = load_native(folder)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_checkpoint_means_the_plugins_that_it_was_made_with(model, folder, monkeypatch):
    """Another plugin that offers an encoder of the same name is none of its business."""
    found = catalogue()
    theirs = [
        CatalogueEntry(entry.spec, Owner(name, "1"))
        for entry in found.entries()
        for name in ("another", "third")
        if entry.spec.name == "siglip"
    ]
    others = Catalogue([*theirs, *(one for one in found.entries() if one.spec.name != "siglip")])
    monkeypatch.setattr(native, "catalogue_for", lambda run, locate: others)
    with pytest.raises(PluginError, match="'another/siglip' or 'third/siglip'"):
        jp.load(folder)
    provenance, manifest = folder / "provenance.json", folder / "manifest.json"
    made_by = json.loads(provenance.read_text())
    made_by["parts"]["understanding.image.encoder"]["distribution"] = "third"
    digest = native._digest(provenance)
    provenance.write_text(json.dumps(made_by))
    manifest.write_text(manifest.read_text().replace(digest, native._digest(provenance)))
    part = jp.load(folder).plan.model.understanding["image"].encoder
    assert part.owner.distribution == "third"


def test_a_default_that_changed_since_is_that_of_the_checkpoint(model, folder, monkeypatch):
    """Options that nobody wrote down belong to a checkpoint too: another default is another model."""
    before = model.plan.model.understanding["image"].encoder.config
    told = json.loads((folder / "provenance.json").read_text())["parts"]["understanding.image.encoder"]
    assert told["options"] == before.model_dump(mode="json")
    assert "normalize" not in before.model_fields_set
    changed = create_model("Changed", __base__=type(before), normalize=(bool, False))
    assert changed().normalize is False
    specs = [
        CatalogueEntry(replace(entry.spec, config=changed), entry.owner)
        if entry.spec.name == "siglip"
        else entry
        for entry in catalogue().entries()
    ]
    monkeypatch.setattr(native, "catalogue_for", lambda run, locate: Catalogue(specs))
    after = jp.load(folder).plan.model.understanding["image"].encoder.config
    assert type(after) is changed
    assert after.normalize is before.normalize is True


def changed_options(entries, config, name="siglip"):
    """The catalogue, the options of one component being of another class."""
    specs = [
        CatalogueEntry(replace(entry.spec, config=config), entry.owner) if entry.spec.name == name else entry
        for entry in entries
    ]
    return Catalogue(specs)


def test_defaults_within_options_computed_and_renamed_ones_are_those_of_the_checkpoint(tmp_path, monkeypatch):
    """Another default inside options of options counts as much; what is computed of them is none."""

    class Crop(BaseModel):
        left: int = 1
        right: int = 2

    class Then(SiglipConfig):
        crop: Crop = Crop()
        ratio: float = Field(default=1.0, alias="lambda")
        size: int = 1

        @computed_field
        def area(self) -> int:
            return 3

    class LaterCrop(Crop):
        right: int = 99

    class Later(Then):
        crop: LaterCrop = LaterCrop()
        ratio: float = Field(default=5.0, alias="lambda")
        size: int = 7

    options = "model.understanding.image.encoder.options."
    run = load_run(write_tiny(tmp_path), [options + "crop={left: 5}", options + "size=4"])
    made = compose_plan(resolve(run, changed_options(catalogue().entries(), Then)))
    made.save(tmp_path / "model")
    later = changed_options(catalogue().entries(), Later)
    monkeypatch.setattr(native, "catalogue_for", lambda run, locate: later)
    after = jp.load(tmp_path / "model").plan.model.understanding["image"].encoder.config
    assert (after.crop.left, after.crop.right, after.ratio, after.size) == (5, 2, 1.0, 4)


def test_another_default_changes_no_option_beside_it(tmp_path, monkeypatch, caplog):
    """Options keep the names that they were given by; what a validator made of one is told, not made twice."""

    class Then(SiglipConfig, validate_by_name=True):
        ratio: float = Field(default=1.0, alias="lambda")
        size: int = Field(default=1, validation_alias="side")
        names: tuple[str, ...] = ("a",)

        @field_validator("names")
        @classmethod
        def _marked(cls, names):
            return tuple(f"<{name}>" for name in names)

    class Later(Then):
        size: int = Field(default=7, validation_alias="side")

    class Latest(Then):
        names: tuple[str, ...] = ("b",)

    options = "model.understanding.image.encoder.options."
    run = load_run(write_tiny(tmp_path), [options + "ratio=2.0"])
    compose_plan(resolve(run, changed_options(catalogue().entries(), Then))).save(tmp_path / "model")
    read = {}
    for config in (Later, Latest):
        found = changed_options(catalogue().entries(), config)
        monkeypatch.setattr(native, "catalogue_for", lambda run, locate, found=found: found)
        caplog.clear()
        after = jp.load(tmp_path / "model").plan.model.understanding["image"].encoder.config
        told = [record.getMessage() for record in caplog.records if record.name == native.__name__]
        read[config] = (after.ratio, after.size, after.names, told)
    assert read[Later] == (2.0, 1, ("a",), [])
    *values, told = read[Latest]
    assert values == [2.0, 1, ("<a>",)]
    assert len(told) == 1
    assert "was made with the option names: ['a'] of janus-plugins" in told[0]
    assert "makes ['<a>']" in told[0]


def test_a_model_whose_options_are_no_plain_data_comes_back(tmp_path, monkeypatch):
    class Precise(SiglipConfig):
        precision: Any = "float32"

        @field_validator("precision")
        @classmethod
        def _of_torch(cls, value):
            return getattr(torch, value)

    found = changed_options(catalogue().entries(), Precise)
    run = load_run(write_tiny(tmp_path), ["model.understanding.image.encoder.options.precision=bfloat16"])
    compose_plan(resolve(run, found)).save(tmp_path / "model")
    monkeypatch.setattr(native, "catalogue_for", lambda run, locate: found)
    after = jp.load(tmp_path / "model").plan.model.understanding["image"].encoder.config
    assert after.precision is torch.bfloat16


def test_a_bare_name_and_anothers_component_of_that_name_stay_apart(tmp_path, monkeypatch):
    """Which of the two comes last in the provenance says nothing about the bare name."""

    class Touch(SiglipConfig):
        def facts(self):
            return replace(super().facts(), modality="touch")

    own, another = catalogue(), Owner("another", "1")
    siglip = own.get(Kind.UNDERSTANDING_ENCODER, "siglip").spec
    theirs = [replace(siglip, name="touch", config=Touch), own.get(Kind.ADAPTER, "mlp").spec]
    found = Catalogue([*own.entries(), *(CatalogueEntry(spec, another) for spec in theirs)])
    monkeypatch.setattr(native, "catalogue_for", lambda run, locate: found)
    options = "{img_size: 8, patch_size: 4, embed_dim: 16, depth: 1, num_heads: 2}"
    touch = f"{{encoder: {{use: touch, options: {options}}}, adapter: {{use: another/mlp}}}}"
    run = load_run(write_tiny(tmp_path), ["model.understanding.touch=" + touch])
    compose_plan(resolve(run, found)).save(tmp_path / "model")
    paths = jp.load(tmp_path / "model").plan.model.understanding
    owners = {name: path.adapter.owner.distribution for name, path in paths.items()}
    assert owners == {"image": "janus-plugins", "touch": "another"}


@pytest.mark.parametrize(
    ("later", "said"),
    [
        ({"pixels": (int, 4)}, "options.img_size: siglip has no such option"),
        ({"img_size": (int, ...), "patch_size": (int, 4), "newly": (int, ...)}, "options.newly: is needed"),
    ],
)
def test_options_that_are_others_today_tell_the_version_that_had_them(
    model, folder, monkeypatch, later, said
):
    config = create_model("Later", __base__=ComponentConfig, **later)
    monkeypatch.setattr(
        native, "_install_hint", lambda made_by: "this model was made with: pip install it==1"
    )
    found = changed_options(catalogue().entries(), config)
    monkeypatch.setattr(native, "catalogue_for", lambda run, locate: found)
    with pytest.raises(RunFileError, match="(?s)" + re.escape(said) + ".*made with: pip install it==1"):
        jp.load(folder)


@pytest.mark.parametrize("read", [jp.load, open_checkpoint])
def test_weights_of_another_version_tell_the_version_that_fits(model, folder, read):
    """A layer that a plugin renamed is an unknown tensor: what helps is the version that had it."""
    made_by = json.loads((folder / "provenance.json").read_text())
    made_by["parts"]["understanding.image.encoder"]["version"] = "0.0.1"
    edited(folder, "embed_dim: 16", "embed_dim: 32", made_by)
    said = r"understanding.image.encoder was made with janus-plugins==0\.0\.1, here it is of janus-plugins=="
    with pytest.raises(CheckpointError, match="(?s)shape.*" + said):
        read(folder)


def test_weights_of_another_library_tell_its_version(model, folder):
    """transformers names modules anew from time to time, and a model folder has the names of its day."""
    made_by = json.loads((folder / "provenance.json").read_text())
    assert made_by["libraries"]["transformers"] == transformers.__version__
    made_by["libraries"]["transformers"] = "5.0.1"
    edited(folder, "embed_dim: 16", "embed_dim: 32", made_by)
    said = rf"transformers==5\.0\.1.* of {transformers.__version__}; next: pip install transformers==5\.0\.1"
    with pytest.raises(CheckpointError, match="(?s)shape.*" + said):
        jp.load(folder)


def test_an_option_and_a_plugin_that_are_gone_are_told(model, folder, caplog):
    """Nobody wrote the option down, so nothing refuses it; the name is ours, too."""
    made_by = json.loads((folder / "provenance.json").read_text())
    made_by["parts"]["understanding.image.encoder"]["options"]["gain"] = 2.0
    made_by["parts"]["understanding.image.adapter"] |= {"distribution": "acme", "version": "1.0"}
    edited(folder, "use: mlp", "use: mlp", made_by)
    jp.load(folder)
    told = [record.getMessage() for record in caplog.records if record.name == native.__name__]
    assert len(told) == 2
    assert "encoder was made with the option gain: 2.0 of janus-plugins" in told[0]
    assert "adapter was made with adapter/mlp of acme 1.0, which cannot be had here" in told[1]


@pytest.mark.parametrize("use", ["llama", "causal-lm"])
def test_a_language_model_that_a_folder_describes_loads_without_the_folder(tmp_path, monkeypatch, use):
    """Its config.json is kept with the checkpoint: the folder may be gone, or hold another by then."""
    vocabulary = load_run(write_tiny(tmp_path)).model.language_model.options["vocab_size"]
    sizes = {"vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    shape = LlamaConfig(**sizes, num_attention_heads=2, max_position_embeddings=128, rope_theta=500.0)
    shape.save_pretrained(tmp_path / "lm")
    monkeypatch.chdir(tmp_path)
    block = "model.language_model"
    options = [f"{block}.use=causal-lm", f"{block}.use={use}", f"{block}.options.folder=lm"]
    model = compose_plan(resolve(load_run(write_tiny(tmp_path), options)))
    model.save("first")
    (tmp_path / "lm" / "config.json").write_text('{"model_type": "llama", "hidden_size": 8}')
    jp.load("first").save("second")
    (tmp_path / "lm").rename(tmp_path / "gone")
    jp.convert("second", "third")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    question = "Put in order: two one"
    said = model.ask(question, max_new_tokens=3)
    for name in ("first", "second", "third"):
        loaded = jp.load(tmp_path / name)
        assert loaded.language_model.config.rope_parameters["rope_theta"] == 500.0
        assert loaded.ask(question, max_new_tokens=3) == said
