"""Damaged and evil sources: each refused by name, nothing run, nothing left at the destination."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import janus_plugins as jp
from janus_plugins import cli
from janus_plugins.conversion.architecture import architecture_of
from janus_plugins.core.errors import CheckpointError, RunFileError
from janus_plugins.core.schema import ParallelBlock
from janus_plugins.door import compose
from tests.conversion.made import make_tokenizer, write_official
from tests.tiny import write_tiny

NORM = "language_model.model.norm.weight"
LATENT = "vision_model.vision_tower.attn_pool.latent"


@pytest.fixture
def folder(official: Path, tmp_path: Path) -> Path:
    """An official folder of one's own, one safetensors file."""
    return Path(shutil.copytree(official, tmp_path / "source"))


@pytest.fixture
def sharded(tensors: dict[str, Tensor], tmp_path: Path) -> Path:
    """An official folder of one's own, two pickled shards."""
    return write_official(tmp_path / "source", tensors, make_tokenizer(), form="bin")


def refused(source: Path, match: str, error: type[Exception] = CheckpointError) -> None:
    """Loading and converting both refuse, and leave nothing beside the source."""
    beside = sorted(path.name for path in source.parent.iterdir())
    with pytest.raises(error, match=match):
        jp.load(source)
    with pytest.raises(error, match=match):
        jp.convert(source, source.parent / "target", layout="transformers")
    assert sorted(path.name for path in source.parent.iterdir()) == beside


def test_a_folder_whose_name_no_run_can_have_is_read_all_the_same(folder):
    assert jp.load(folder.rename(folder.with_name(".hidden"))).plan.run.name == "janus"


def test_a_missing_shard(sharded):
    (sharded / "pytorch_model-00002-of-00002.bin").unlink()
    refused(sharded, r"1 of 2 shards are missing: pytorch_model-00002-of-00002\.bin")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_truncated_safetensors_file(folder, share):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    refused(folder, r"model\.safetensors cannot be read")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_truncated_pickle(sharded, share):
    path = sharded / "pytorch_model-00001-of-00002.bin"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    refused(sharded, r"pytorch_model-00001-of-00002\.bin (cannot be read|is no file of tensors)")


Change = Callable[[dict[str, Tensor]], object]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda made: made.update({"language_model.model.norms.weight": made.pop(NORM)}), rf"missing tensor {NORM}\n  unknown tensor language_model\.model\.norms\.weight"),
        (lambda made: made.pop("gen_embed.weight"), r"missing tensor gen_embed\.weight"),
        (lambda made: made.update(stranger=torch.zeros(2)), "unknown tensor stranger"),
        (lambda made: made.update({NORM: torch.ones(47, dtype=torch.bfloat16)}), rf"{NORM} has shape \[47\], the config asks for \[48\]"),
        (lambda made: made.update({NORM: made[NORM].to(torch.int32)}), rf"{NORM} has dtype I32; weights are F32, F16, BF16"),
        (lambda made: made.update({NORM: made[NORM].double()}), rf"{NORM} has dtype F64"),
        (lambda made: made.update({NORM: made[NORM].to(torch.float8_e4m3fn)}), rf"{NORM} has dtype F8_E4M3"),
        (lambda made: made.update({NORM: made[NORM].float()}), rf"{NORM} has dtype F32, the rest of language_model BF16"),
        (lambda made: made.update({"vision_model.vision_tower.attn_pool.q.bias": torch.zeros(3)}), r"attn_pool\.q\.bias has shape \[3\], the config asks for \[32\]"),
        (lambda made: made.update({"vision_model.vision_tower.attn_pool.unknown": torch.zeros(3)}), r"unknown tensor vision_model\.vision_tower\.attn_pool\.unknown"),
        (lambda made: made.update({LATENT: made[LATENT].to(torch.float8_e4m3fn)}), rf"{LATENT} has dtype F8_E4M3; F64, F32"),
        (lambda made: made.update({LATENT: made[LATENT].to(torch.complex64)}), rf"{LATENT} has dtype C64; F64, F32"),
    ],
    ids=["renamed", "missing", "unknown", "shape", "int32", "float64", "float8", "mixed", "extra's shape", "unknown extra", "extra in float8", "complex extra"],
)  # fmt: skip
def test_tensors_that_do_not_fit(folder, tensors, change: Change, match):
    made = dict(tensors)
    change(made)
    save_file(made, folder / "model.safetensors")
    refused(folder, match)


def test_an_extra_tensor_of_an_odd_dtype_in_a_native_checkpoint(folder, tmp_path):
    native = tmp_path / "native"
    jp.convert(folder, native)
    extras = load_file(native / "extras.safetensors")
    save_file({**extras, LATENT: extras[LATENT].to(torch.complex64)}, native / "extras.safetensors")
    manifest = native / "manifest.json"
    said = json.loads(manifest.read_text())
    said["sha256"]["extras.safetensors"] = hashlib.sha256(
        (native / "extras.safetensors").read_bytes()
    ).hexdigest()
    manifest.write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match=rf"{LATENT} has dtype C64"):
        jp.convert(native, tmp_path / "target")


def test_a_wrong_tensor_in_transformers_layout(converted, oracle, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(converted, source)
    made = {name: value.clone() for name, value in oracle.state_dict().items()}
    key = "model.vision_model.encoder.layers.1.self_attn.k_proj.weight"
    save_file({name: value for name, value in made.items() if name != key}, source / "model.safetensors")
    refused(source, f"missing tensor {key}")
    save_file({**made, key: made[key].bfloat16()}, source / "model.safetensors")
    refused(source, f"{key} and .* have dtypes F32 and BF16 and F32")
    save_file({**made, key: torch.zeros(31, 32)}, source / "model.safetensors")
    refused(source, rf"{key} has shape \[31, 32\], the config asks for \[32, 32\]")


class Evil:
    """Would run a command when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("place", ["as a tensor", "as everything"])
def test_a_pickle_with_code_in_it(sharded, tensors, tmp_path, place):
    mark = tmp_path / "ran"
    evil = Evil(mark)
    content = {**tensors, "gen_embed.weight": evil} if place == "as a tensor" else evil
    torch.save(content, sharded / "pytorch_model-00001-of-00002.bin")
    refused(sharded, "is no file of tensors alone, and was not loaded")
    assert not mark.exists()


@pytest.mark.parametrize(
    "content", [[torch.zeros(1)], {"a": 1}, {"model": {"a": torch.zeros(1)}}, {1: torch.zeros(1)}]
)
def test_a_pickle_of_something_else(sharded, content):
    torch.save(content, sharded / "pytorch_model-00001-of-00002.bin")
    refused(sharded, "not tensors by name|more than tensors by name")


def test_a_pickle_of_the_old_format(sharded, tensors):
    """It cannot be mapped, so it would have to be read whole; refused, not read in another way."""
    path = sharded / "pytorch_model-00001-of-00002.bin"
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    refused(sharded, "older than torch 1.6")


def rezipped(path: Path, compression: int, change: Callable[[str, bytes], bytes]) -> None:
    """Write a pickle's zip anew, its entries changed."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, change(name, data))


def test_a_pickle_that_is_zipped_anew_as_it_was(sharded):
    before = jp.load(sharded).state_dict()
    for path in sharded.glob("*.bin"):
        rezipped(path, zipfile.ZIP_STORED, lambda _, data: data)
    assert all(torch.equal(before[name], each) for name, each in jp.load(sharded).state_dict().items())


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_packed_pickle(sharded, compression):
    """Mapped, its packed bytes would be taken for weights."""
    rezipped(sharded / "pytorch_model-00001-of-00002.bin", compression, lambda _, data: data)
    refused(
        sharded, r"is a compressed or encrypted zip \(.*save it again with torch\.save, or as safetensors"
    )


def test_a_pickle_whose_data_is_too_short(sharded):
    """Mapped, a tensor would go on in the bytes of the next one."""
    path = sharded / "pytorch_model-00001-of-00002.bin"
    rezipped(path, zipfile.ZIP_STORED, lambda name, data: data[:-2] if name.endswith("/data/0") else data)
    refused(sharded, "its tensors are not as long as the data that it holds")


def test_a_pickle_of_a_tensor_without_data(sharded, tensors):
    path = sharded / "pytorch_model-00001-of-00002.bin"
    torch.save({**torch.load(path), "gen_embed.weight": tensors["gen_embed.weight"].to("meta")}, path)
    refused(sharded, r"gen_embed\.weight was saved on the meta device and has no data")


def test_other_forms_of_weights(folder):
    (folder / "model.safetensors").rename(folder / "consolidated.pth")
    refused(folder, r"holds only consolidated\.pth; model\.safetensors or pytorch_model\.bin")
    (folder / "consolidated.pth").unlink()
    refused(folder, "holds no weights")


@pytest.mark.parametrize(
    ("name", "file", "match"),
    [
        ("gen_embed.weight", "pytorch_model-00002-of-00002.bin", "disagree about"),
        ("stranger", "pytorch_model-00002-of-00002.bin", "it is in no file"),
        ("gen_embed.weight", "../elsewhere.bin", "no weight file beside it"),
        ("gen_embed.weight", "/etc/passwd", "no weight file beside it"),
        ("gen_embed.weight", "config.json", "no weight file beside it"),
    ],
)
def test_an_index_that_is_wrong(sharded, name, file, match):
    path = sharded / "pytorch_model.bin.index.json"
    index = json.loads(path.read_text())
    if index["weight_map"].get(name) == file:
        file = "pytorch_model-00001-of-00002.bin"
    index["weight_map"][name] = file
    path.write_text(json.dumps(index))
    refused(sharded, match)


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": 3}', "{", '{"metadata": {}}'])
def test_an_index_that_is_none(sharded, text):
    (sharded / "pytorch_model.bin.index.json").write_text(text)
    refused(sharded, "cannot be read as an index")


@pytest.mark.parametrize(
    ("file", "old", "new", "match"),
    [
        ("config.json", "multi_modality", "llava", "model_type is 'llava'"),
        ("config.json", '"model_type": "multi_modality"', '"model_type": 3', "model_type is 3"),
        ("config.json", "{", "", "cannot be read as JSON"),
        ("config.json", '"cls": "VQ-16"', '"cls": "VQ-8"', "cls is 'VQ-8'; only VQ-16"),
        ("config.json", "siglip_large_patch16_384", "clip-vit-large", "model_name is 'clip-vit-large'"),
        ("config.json", '"select_layer": -1', '"select_layer": -2', "select_layer is -2"),
        ("config.json", '"select_layer": -1', '"select_layer": null', "select_layer is -2; only -1"),
        ("config.json", '"select_layer": -1', '"select_layer": -1, "select_layers": [1]', r"select_layers is \[1\]"),
        ("config.json", '"select_layer": -1', '"select_layer": -1, "qk_norm": true', "qk_norm is True"),
        ("config.json", '"select_layer": -1', '"select_layer": -1, "ignore_head": false', "ignore_head is False"),
        ("config.json", '"projector_type": "mlp_gelu"', '"projector_type": "linear"', "projector_type is 'linear'"),
        ("config.json", '"hidden_size": 48', '"hidden_size": "48"', "hidden_size is '48', not a whole number"),
        ("config.json", '"hidden_size": 48', '"hidden_size": 50', "num_heads"),
        ("config.json", '"hidden_size": 48', f'"hidden_size": {10**30}', f"hidden_size is {10**30}, not a whole number above 0 and below"),
        ("config.json", '"hidden_size": 48', f'"hidden_size": {"9" * 5000}', "cannot be read as JSON"),
        ("config.json", '"hidden_size": 48', '"hidden_size": 480000', r"embed_tokens\.weight has shape \[420, 48\], the config asks for \[420, 480000\]"),
        ("config.json", '"num_hidden_layers": 2', '"num_hidden_layers": 20000', r"missing tensor language_model\.model\.layers\.19999\."),
        ("config.json", '"layers": 2', '"layers": 20000', r"missing tensor vision_model\.vision_tower\.blocks\.19999\."),
        ("config.json", '"z_channels": 32', '"z_channels": 20000000', r"conv_out\.weight has shape \[32, 64, 3, 3\]"),
        ("config.json", '"num_res_blocks": 1', '"num_res_blocks": 20000', r"missing tensor gen_vision_model\.encoder\.conv_blocks\.0\.res\.19999"),
        ("config.json", '"mlp_ratio": 2.0', '"mlp_ratio": 1e308', "mlp_ratio is 1e"),
        ("config.json", '"depth": 2,\n      "input_dim": 32', '"depth": 20000, "input_dim": 32', "which the official layout has no name for"),
        ("config.json", '"vocab_size": 420', '"vocab_size": 100', "the tokenizer has 329 entries, the language model embeds 100"),
        ("config.json", '"hidden_size": 48', '"rope_scaling": {"type": "linear", "factor": 2}, "hidden_size": 48', "type is 'linear'"),
        ("processor_config.json", '"deepseek"', '"vicuna"', "sft_format is 'vicuna'"),
        ("processor_config.json", "16", "576", "num_image_tokens is 576"),
        ("processor_config.json", '"add_special_token": false', '"add_special_token": true', "add_special_token is True; only False"),
        ("processor_config.json", "{", '{"pad_tag": "<unused>",', "pad_tag is '<unused>'; only '<｜▁pad▁｜>'"),
        ("preprocessor_config.json", '"image_size": 32', '"image_size": 384', "image_size is 384"),
        ("preprocessor_config.json", "0.5", "0.4", "image_mean is"),
        ("preprocessor_config.json", '"min_size": 14', '"min_size": 28', "min_size 28"),
        ("tokenizer.json", "<begin_of_image>", "<start_of_image>", "no token '<begin_of_image>'"),
        ("tokenizer.json", "{", "", r"tokenizer\.json cannot be read"),
    ],
)  # fmt: skip
def test_text_files_that_are_wrong(folder, file, old, new, match):
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    refused(folder, match)


def test_transformers_files_that_are_wrong(converted, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(converted, source)
    path = source / "config.json"
    text = path.read_text()
    config = json.loads(text)
    path.write_text(
        json.dumps({**config, "text_config": {**config["text_config"], "num_hidden_layers": 20000}})
    )
    refused(source, r"missing tensor model\.language_model\.layers\.19999\.")
    path.write_text(json.dumps({**config, "image_token_id": 7}))
    refused(source, "image_token_id is 7, but '<image_placeholder>' has id 326")
    for part, name, value, match in (
        ("vision_config", "use_qk_norm", True, "use_qk_norm is True"),
        ("vision_config", "num_image_tokens", 9, "num_image_tokens is 9, but the number of patches is 16"),
        ("vq_config", "projection_dim", 64, "projection_dim is 64"),
        ("text_config", "hidden_act", "gelu", "hidden_act is 'gelu'"),
    ):
        path.write_text(json.dumps({**config, part: {**config[part], name: value}}))
        refused(source, match)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"do_rescale": False}, "do_rescale is False; only True"),
        ({"do_resize": False}, "do_resize is False; only True"),
        ({"do_pad": False}, "do_pad is False; only True"),
        ({"resample": 0}, "resample is 0; only 3"),
        ({"size": {"shortest_edge": 32}}, "height is missing"),
        ({"size": {"height": 32, "width": 48}}, "width is 48, but the vision config's image_size is 32"),
        (
            {"size": None},
            "height is 384, but the vision config's image_size is 32",
        ),  # what transformers takes
    ],
)
def test_pictures_that_transformers_would_prepare_otherwise(converted, tmp_path, nested, change, match):
    source = Path(shutil.copytree(converted, tmp_path / "source"))
    path = source / "preprocessor_config.json"
    changed = json.loads(path.read_text()) | change
    path.write_text(json.dumps({name: value for name, value in changed.items() if value is not None}))
    if nested:
        path.unlink()
        path = source / "processor_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "image_processor": changed}))
    refused(source, match)


def test_what_transformers_does_by_default_may_be_left_out(converted, tmp_path):
    source = Path(shutil.copytree(converted, tmp_path / "source"))
    path = source / "preprocessor_config.json"
    left = json.loads(path.read_text())
    for name in (
        "do_resize",
        "do_rescale",
        "do_pad",
        "do_normalize",
        "resample",
        "rescale_factor",
        "min_size",
    ):
        del left[name]
    path.write_text(json.dumps(left))
    assert jp.load(source).plan.model.understanding["image"].encoder.config.normalize


def test_no_tokenizer_and_no_checkpoint(folder, tmp_path):
    (folder / "tokenizer.json").unlink()
    refused(folder, r"has no tokenizer\.json")
    with pytest.raises(CheckpointError, match="is not a folder"):
        jp.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="is not a folder"):
        jp.convert(tmp_path / "nowhere", tmp_path / "target")


def test_damaged_extras_of_a_native_checkpoint(folder, tmp_path):
    native = tmp_path / "native"
    jp.convert(folder, native)
    manifest = json.loads((native / "manifest.json").read_text())
    assert manifest["extras"] == ["extras.safetensors", "extras.json"]
    assert {"extras.safetensors", "extras.json"} <= manifest["sha256"].keys()
    path = native / "extras.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    refused(native, r"extras\.safetensors is damaged")


def test_a_layout_that_does_not_exist(folder, tmp_path):
    with pytest.raises(RunFileError, match=r"layout 'oficial' is not one of.*official"):
        jp.convert(folder, tmp_path / "target", layout="oficial")


def test_a_target_that_is_taken(folder, tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "mine").write_text("mine")
    with pytest.raises(CheckpointError, match="not empty"):
        jp.convert(folder, tmp_path / "target")
    assert (tmp_path / "target" / "mine").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    jp.convert(folder, tmp_path / "empty")
    jp.load(tmp_path / "empty")


def test_a_full_disk_leaves_nothing(folder, tmp_path, monkeypatch):
    from janus_plugins.model.tensor_file import TensorWriter

    written = 0
    write = TensorWriter.write

    def fill(self, name, tensor):
        nonlocal written
        written += 1
        if written == 40:
            raise OSError(28, "No space left on device")
        write(self, name, tensor)

    monkeypatch.setattr(TensorWriter, "write", fill)
    for target in (tmp_path / "target", tmp_path / "new" / "deep" / "target"):
        written = 0
        with pytest.raises(CheckpointError, match="No space left on device"):
            jp.convert(folder, target)
        assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_a_killed_conversion_left_is_removed(folder, tmp_path):
    """Only of this destination, and only where its process is gone."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    names = {name: f".{name}.tmp-{gone.pid}" for name in ("target", "other")}
    kept = [names["other"], f".target.tmp-{os.getppid()}", ".target.tmp-mine"]
    for name in (names["target"], *kept):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    jp.convert(folder, tmp_path / "target")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["source", "target", *kept])


def test_a_model_that_has_no_foreign_layout(tmp_path):
    """Its parts are named; it stays native."""
    model = compose(write_tiny(tmp_path))
    model.save(tmp_path / "native")
    for layout in ("official", "transformers"):
        with pytest.raises(CheckpointError, match=r"generation\.image\.encoder: norm_groups is 4; .* 32"):
            jp.convert(tmp_path / "native", tmp_path / "target", layout=layout)
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(("option", "value"), [("rotate", True), ("background", (0, 0, 0))])
def test_pictures_that_a_foreign_layout_cannot_describe(model, option, value):
    path = model.plan.model.understanding["image"]
    config = path.encoder.config.model_copy(update={option: value})
    encoder = replace(path.encoder, config=config)
    changed = replace(model.plan.model, understanding={"image": replace(path, encoder=encoder)})
    with pytest.raises(CheckpointError, match=rf"understanding\.image\.encoder: {option} is "):
        architecture_of(replace(model.plan, model=changed))


def test_a_model_that_predicts_blocks_has_no_foreign_layout(model):
    path = replace(model.plan.model.generation["image"], parallel=ParallelBlock(block=4))
    blocks = replace(model.plan, model=replace(model.plan.model, generation={"image": path}))
    assert architecture_of(model.plan)
    with pytest.raises(
        CheckpointError, match=r"predicts 4 codes at once .* only be kept in the native layout"
    ):
        architecture_of(blocks)


def test_exit_code_four_without_a_traceback(sharded, monkeypatch, capsys):
    (sharded / "pytorch_model-00002-of-00002.bin").unlink()
    words = ["janus-plugins", "convert", str(sharded), str(sharded.parent / "target")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 4
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "Traceback" not in error
