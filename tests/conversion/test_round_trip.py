"""From layout to layout and back: the same bits, and files that say the same."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import JanusForConditionalGeneration, JanusProcessor
from typer.testing import CliRunner

import janus_plugins as jp
from janus_plugins.cli import app
from janus_plugins.conversion import transformers_write
from janus_plugins.conversion.description import PREPROCESSOR
from janus_plugins.conversion.official import read as read_official
from janus_plugins.core.errors import CheckpointError
from janus_plugins.inference.paths import read_items
from tests.conversion.made import (
    make_model,
    make_tokenizer,
    official_tensors,
    read_tensors,
    write_bin,
    write_official,
)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert torch.equal(tensor, other[name]), name


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.suffix != ".safetensors"}


def test_official_native_transformers_native_official(official, tensors, tmp_path):
    jp.convert(official, tmp_path / "n")
    jp.convert(tmp_path / "n", tmp_path / "t", layout="transformers")
    jp.convert(tmp_path / "t", tmp_path / "n2", layout="native")
    done = jp.convert(tmp_path / "n2", tmp_path / "o", layout="official")
    same(read_tensors(tmp_path / "o"), tensors)
    assert texts(tmp_path / "o") == texts(official)  # config, tokenizer, processor: to the letter
    same(read_tensors(tmp_path / "n"), read_tensors(tmp_path / "n2"))
    assert (tmp_path / "n" / "config.yaml").read_text().replace("name: official\n", "") == (
        tmp_path / "n2" / "config.yaml"
    ).read_text().replace("name: t\n", "")
    assert set(done.extras) == {name for name in tensors if "attn_pool" in name or "codebook_used" in name}
    assert all(value.dtype == torch.bfloat16 for value in read_tensors(tmp_path / "n").values())


def test_transformers_native_official_native_transformers(oracle, processor, tmp_path):
    """What transformers itself saved comes back to the letter too, its processor included."""
    source = tmp_path / "source"
    oracle.save_pretrained(source)
    processor.save_pretrained(source)
    first = texts(source)
    jp.convert(source, tmp_path / "o", layout="official")
    jp.convert(tmp_path / "o", tmp_path / "direct", layout="transformers")
    jp.convert(source, tmp_path / "n")
    jp.convert(tmp_path / "n", tmp_path / "t", layout="transformers")
    for folder in ("direct", "t"):
        same(load_file(tmp_path / folder / "model.safetensors"), load_file(source / "model.safetensors"))
    assert texts(tmp_path / "t") == first
    loaded = JanusForConditionalGeneration.from_pretrained(tmp_path / "direct", dtype=torch.float32)
    same(loaded.state_dict(), oracle.state_dict())
    assert loaded.config.to_dict()["vision_config"] | {"dtype": "float32"} == {
        **oracle.config.to_dict()["vision_config"], "dtype": "float32",
    }  # fmt: skip


def test_an_official_folder_without_extras_gets_what_the_official_code_builds(oracle, tmp_path):
    source = write_official(tmp_path / "o", official_tensors(oracle, extras=False), make_tokenizer())
    jp.convert(source, tmp_path / "n")
    assert not (tmp_path / "n" / "extras.safetensors").exists()
    done = jp.convert(tmp_path / "n", tmp_path / "o2", layout="official")
    written = read_tensors(tmp_path / "o2")
    assert written.keys() == official_tensors(oracle).keys()
    assert not written["gen_vision_model.quantize.codebook_used"].any()
    assert "zeros" in done.notes[0]


def test_pickled_shards_equal_one_safetensors_file(official, tensors, tmp_path):
    sharded = write_official(tmp_path / "o", tensors, make_tokenizer(), form="bin")
    jp.convert(sharded, tmp_path / "n")
    jp.convert(official, tmp_path / "n2")
    same(read_tensors(tmp_path / "n"), read_tensors(tmp_path / "n2"))
    same(load_file(tmp_path / "n" / "extras.safetensors"), load_file(tmp_path / "n2" / "extras.safetensors"))


def test_q_k_and_v_in_different_shards(oracle, converted, tmp_path):
    """Names are dealt out in turn, so that one native tensor has its parts in three files."""
    folder = tmp_path / "t"
    folder.mkdir()
    for name, text in texts(converted).items():
        (folder / name).write_text(text)
    write_bin(folder, oracle.state_dict(), number=3)
    shards = json.loads((folder / "pytorch_model.bin.index.json").read_text())["weight_map"]
    stem = "model.vision_model.encoder.layers.0.self_attn"
    assert len({shards[f"{stem}.{each}_proj.weight"] for each in "qkv"}) > 1
    same(jp.load(folder).state_dict(), jp.load(converted).state_dict())


def test_shards_and_their_index_are_written(official, tensors, tmp_path, monkeypatch):
    monkeypatch.setattr("janus_plugins.model.native.SHARD_BYTES", 300_000)
    jp.convert(official, tmp_path / "o", layout="official")
    files = sorted(path.name for path in (tmp_path / "o").glob("model-*.safetensors"))
    assert len(files) > 5
    index = json.loads((tmp_path / "o" / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in tensors.values())
    same(read_tensors(tmp_path / "o"), tensors)
    same(jp.load(tmp_path / "o").state_dict(), jp.load(official).state_dict())
    jp.convert(tmp_path / "o", tmp_path / "n")
    assert len(list((tmp_path / "n").glob("model-*.safetensors"))) > 5
    same(jp.load(tmp_path / "n").state_dict(), jp.load(official).state_dict())


def test_all_three_layouts_load_as_the_same_model(official, tmp_path):
    jp.convert(official, tmp_path / "n")
    jp.convert(official, tmp_path / "t", layout="transformers")
    models = [jp.load(folder) for folder in (official, tmp_path / "n", tmp_path / "t")]
    for other in models[1:]:
        same(models[0].state_dict(), other.state_dict())
        assert other.template == models[0].template
        assert other.tokenizer.encode("User: a cat") == models[0].tokenizer.encode("User: a cat")
    assert {value.dtype for value in models[0].parameters()} == {torch.bfloat16}
    # Buffers that no file holds are as exact as in a model that is built in fp32.
    rotary = models[0].language_model.model.rotary_emb.inv_freq
    assert rotary.dtype == torch.float32
    assert torch.equal(rotary, make_model(make_tokenizer()).model.language_model.rotary_emb.inv_freq)


def test_what_only_training_needs_is_no_matter(official, tensors, tmp_path):
    """A run may have named a callback whose plugin is not installed here; loading does not mind, either."""
    jp.convert(official, tmp_path / "native")
    config, manifest = tmp_path / "native" / "config.yaml", tmp_path / "native" / "manifest.json"
    before = hashlib.sha256(config.read_bytes()).hexdigest()
    text = config.read_text()
    assert "callbacks: []" in text
    config.write_text(text.replace("callbacks: []", "callbacks: [{use: of-another-machine}]"))
    after = hashlib.sha256(config.read_bytes()).hexdigest()
    manifest.write_text(manifest.read_text().replace(before, after))
    jp.load(tmp_path / "native")
    jp.convert(tmp_path / "native", tmp_path / "back", "official")
    same(read_tensors(tmp_path / "back"), tensors)


def test_tied_weights_are_written_once_and_stay_tied(tmp_path):
    tokenizer = make_tokenizer()
    made = official_tensors(make_model(tokenizer))
    del made["language_model.lm_head.weight"]
    source = write_official(tmp_path / "o", made, tokenizer)
    config = json.loads((source / "config.json").read_text())
    config["language_config"]["tie_word_embeddings"] = True
    (source / "config.json").write_text(json.dumps(config))
    jp.convert(source, tmp_path / "n")
    jp.convert(tmp_path / "n", tmp_path / "t", layout="transformers")
    jp.convert(tmp_path / "t", tmp_path / "o2", layout="official")
    same(read_tensors(tmp_path / "o2"), made)
    for folder in (source, tmp_path / "n", tmp_path / "t"):
        model = jp.load(folder)
        head = model.language_model.text_head.output.weight
        assert head is model.language_model.model.embed_tokens.weight
        assert not head.is_meta
    theirs = JanusForConditionalGeneration.from_pretrained(tmp_path / "t")
    assert torch.equal(theirs.lm_head.weight, made["language_model.model.embed_tokens.weight"])


@pytest.mark.parametrize("name", ["GPT2Config", "GPTNeoXConfig", "OPTConfig"])
def test_tied_weights_of_any_language_model_stay_tied(tmp_path, name):
    """What the embedding is called differs from family to family."""
    sizes = {"vocab_size": 96, "hidden_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
    getattr(transformers, name)(**sizes, tie_word_embeddings=True).save_pretrained(tmp_path / "lm")
    torch.manual_seed(0)
    block = "model.language_model"
    model = jp.compose("digits", [f"{block}.use=causal-lm", f"{block}.options.folder={tmp_path / 'lm'}"])
    model.save(tmp_path / "n")
    jp.convert(tmp_path / "n", tmp_path / "again")
    same(jp.load(tmp_path / "again").state_dict(), model.state_dict())
    same(read_tensors(tmp_path / "again"), read_tensors(tmp_path / "n"))


def test_an_output_layer_in_the_file_counts_whatever_the_config_says(converted, oracle, tmp_path):
    """transformers' JanusConfig says tied by default; the published weights are not."""
    folder = tmp_path / "t"
    folder.mkdir()
    for name, text in texts(converted).items():
        (folder / name).write_text(text)
    config = json.loads((folder / "config.json").read_text())
    del config["tie_word_embeddings"]
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        {name: value.clone() for name, value in oracle.state_dict().items()}, folder / "model.safetensors"
    )
    head = jp.load(folder).language_model.text_head.output.weight
    assert torch.equal(head, oracle.lm_head.weight)
    assert not torch.equal(head, oracle.model.language_model.embed_tokens.weight)


@pytest.mark.parametrize(
    ("roles", "said", "template", "user"),
    [
        (True, "deepseek", "deepseek", "<|User|>"),
        (False, "deepseek_old", "deepseek-old", "User"),
        (False, "deepseek", "deepseek-old", "User"),  # Janus-1.3B before 2025-01-27
    ],
)
def test_each_generation_of_the_model_has_its_template(tensors, tmp_path, roles, said, template, user):
    source = write_official(tmp_path / "o", tensors, make_tokenizer(roles), sft_format=said)
    assert jp.load(source).plan.run.model.language_model.template == template
    done = jp.convert(source, tmp_path / "t", layout="transformers")
    assert bool(done.notes) == (said == "deepseek" and not roles)
    processor = JanusProcessor.from_pretrained(tmp_path / "t", backend="pil")
    text = processor.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    assert text.startswith(f"{user}: Hi\n\n")
    assert jp.load(tmp_path / "t").plan.run.model.language_model.template == template
    jp.convert(tmp_path / "t", tmp_path / "o2", layout="official")
    assert texts(tmp_path / "o2") == texts(source)


def test_a_tokenizer_without_the_placeholder_gets_it_on_every_way(tensors, tmp_path):
    """The official code adds it when it loads a tokenizer; transformers' layout needs its id."""
    bare = make_tokenizer(roles=False, placeholder=False)
    source = write_official(tmp_path / "o", tensors, bare, sft_format="deepseek_old")
    jp.convert(source, tmp_path / "direct", layout="transformers")
    jp.convert(source, tmp_path / "n")
    jp.convert(tmp_path / "n", tmp_path / "t", layout="transformers")
    for folder in (tmp_path / "direct", tmp_path / "t"):
        config = json.loads((folder / "config.json").read_text())
        assert config["image_token_id"] == bare.get_vocab_size()
        processor = JanusProcessor.from_pretrained(folder, backend="pil")
        ids = processor(
            text=["<image_placeholder>"], images=[Image.new("RGB", (8, 8))], return_tensors="np"
        ).input_ids[0]
        assert ids.tolist().count(bare.get_vocab_size()) == 16
        jp.convert(folder, tmp_path / f"{folder.name}-back", layout="official")
        assert texts(tmp_path / f"{folder.name}-back") == texts(source)
        same(jp.load(folder).state_dict(), jp.load(source).state_dict())


def test_no_id_is_written_for_a_token_that_is_not_there(official):
    files = {name: text for name, text in texts(official).items() if name.endswith(".json")}
    described = read_official(files, "DIR", True)
    bare = make_tokenizer(placeholder=False).to_str()
    with pytest.raises(CheckpointError, match="the model's tokenizer has no token '<image_placeholder>'"):
        transformers_write.write(described, bare, "bfloat16")


@pytest.fixture
def resaved(official, tmp_path) -> Path:
    """A converted folder that transformers has loaded and saved again, what was kept still beside it."""
    jp.convert(official, tmp_path / "t", layout="transformers")
    folder = tmp_path / "resaved"
    JanusForConditionalGeneration.from_pretrained(tmp_path / "t").save_pretrained(folder)
    JanusProcessor.from_pretrained(tmp_path / "t", backend="pil").save_pretrained(folder)
    for name in ("extras.json", "extras.safetensors"):
        shutil.copy(tmp_path / "t" / name, folder)
    return folder


def test_what_transformers_saved_again_is_still_the_same_model(resaved, official, tmp_path):
    jp.convert(resaved, tmp_path / "o", layout="official")
    assert texts(tmp_path / "o") == texts(official)


def test_a_token_that_was_added_in_transformers_stays(resaved, official, tmp_path):
    processor = JanusProcessor.from_pretrained(resaved, backend="pil")
    processor.tokenizer.add_tokens(["<new>"])
    processor.save_pretrained(resaved)
    jp.convert(resaved, tmp_path / "o", layout="official")
    written = Tokenizer.from_file(str(tmp_path / "o" / "tokenizer.json"))
    assert written.token_to_id("<new>") == processor.tokenizer.convert_tokens_to_ids("<new>")
    jp.convert(resaved, tmp_path / "n")
    jp.convert(tmp_path / "n", tmp_path / "o2", layout="official")
    written = Tokenizer.from_file(str(tmp_path / "o2" / "tokenizer.json"))
    assert written.token_to_id("<new>") == processor.tokenizer.convert_tokens_to_ids("<new>")


def test_a_dtype_that_was_changed_in_transformers_is_said(resaved, official, tmp_path):
    JanusForConditionalGeneration.from_pretrained(resaved, dtype=torch.float32).save_pretrained(resaved)
    jp.convert(resaved, tmp_path / "o", layout="official")
    config = json.loads((tmp_path / "o" / "config.json").read_text())
    assert {config["torch_dtype"], config["language_config"]["torch_dtype"]} == {"float32"}


def test_files_that_were_not_kept_are_made_anew(official, tmp_path):
    """Without what a conversion kept (a model trained on and saved again), the files say the same."""
    jp.load(official).save(tmp_path / "n")
    jp.convert(tmp_path / "n", tmp_path / "o", layout="official")
    for name in ("preprocessor_config.json", "processor_config.json"):
        assert json.loads((tmp_path / "o" / name).read_text()) == json.loads((official / name).read_text())
    config = json.loads((tmp_path / "o" / "config.json").read_text())
    for key, value in json.loads((official / "config.json").read_text()).items():
        if isinstance(value, dict):
            assert config[key].items() >= value.items(), key
    made, given = (
        Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (tmp_path / "o", official)
    )
    assert made.get_vocab() == given.get_vocab()


@pytest.fixture
def unnormalised(tensors, tmp_path) -> Path:
    """As Janus-1.3B was before 2024-11-14."""
    source = write_official(tmp_path / "o", tensors, make_tokenizer())
    path = source / PREPROCESSOR
    path.write_text(path.read_text().replace('"do_normalize": true', '"do_normalize": false'))
    return source


def do_normalize(folder: Path) -> bool:
    return json.loads((folder / PREPROCESSOR).read_text())["do_normalize"]


def test_do_normalize_travels(unnormalised, tmp_path, caplog):
    done = jp.convert(unnormalised, tmp_path / "t", layout="transformers")
    assert "do_normalize: false" in done.notes[0]
    assert do_normalize(tmp_path / "t") is False
    jp.convert(tmp_path / "t", tmp_path / "n")
    jp.convert(tmp_path / "n", tmp_path / "o2", layout="official")
    assert (tmp_path / "o2" / PREPROCESSOR).read_text() == (unnormalised / PREPROCESSOR).read_text()
    jp.load(unnormalised)
    assert "do_normalize: false" in caplog.text


def test_do_normalize_is_followed_in_every_layout(unnormalised, official, tmp_path):
    """Pixels in [0, 1], the padding at 127 / 255: as much as the other revision's, moved and scaled back."""
    picture = Image.fromarray(np.arange(40 * 24 * 3, dtype=np.uint32).reshape(24, 40, 3).astype(np.uint8))
    jp.convert(unnormalised, tmp_path / "t", layout="transformers")
    jp.convert(unnormalised, tmp_path / "n")
    usual = understanding_pixels(official, picture)
    assert usual.min() < -0.5
    for folder in (unnormalised, tmp_path / "t", tmp_path / "n"):
        pixels = understanding_pixels(folder, picture)
        assert np.abs(pixels - (usual * 0.5 + 0.5)).max() < 1e-6
        assert abs(pixels[0, 0, 0] - 127 / 255) < 1e-6
    theirs = JanusProcessor.from_pretrained(tmp_path / "t", backend="pil").image_processor
    expected = theirs(picture, return_tensors="np").pixel_values[0]
    assert np.abs(pixels - expected).max() < 1e-6


def understanding_pixels(folder: Path, picture: Image.Image) -> np.ndarray:
    encoder = jp.load(folder).plan.model.understanding["image"].encoder
    return read_items(encoder, [picture])[0]["pixels"]


def test_do_normalize_is_written_by_what_the_model_does(unnormalised, official, tmp_path):
    """Saved without the files it came from, and where those say otherwise."""
    jp.load(unnormalised).save(tmp_path / "n")
    assert not (tmp_path / "n" / "extras.json").exists()
    for layout in ("official", "transformers"):
        jp.convert(tmp_path / "n", tmp_path / layout, layout=layout)
        assert do_normalize(tmp_path / layout) is False
    jp.convert(official, tmp_path / "kept")
    jp.load(official).save(tmp_path / "other")
    files = json.loads((tmp_path / "kept" / "extras.json").read_text())
    files["official"][PREPROCESSOR] = (unnormalised / PREPROCESSOR).read_text()
    (tmp_path / "other" / "extras.json").write_text(json.dumps(files))
    jp.convert(tmp_path / "other", tmp_path / "o2", layout="official")
    assert do_normalize(tmp_path / "o2") is True


def test_special_tokens_are_found_by_string(tensors, tmp_path):
    """Another order of the special tokens gives other ids, everywhere."""
    from tokenizers import AddedToken

    from tests.conversion.made import BOS, EOS, PAD, ROLES

    plain = make_tokenizer()
    data = json.loads(plain.to_str())
    data["added_tokens"] = []
    moved = Tokenizer.from_str(json.dumps(data))
    order = [*ROLES, "<image_placeholder>", "<end_of_image>", PAD, "<begin_of_image>", EOS, BOS]
    moved.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in order])
    source = write_official(tmp_path / "o", tensors, moved)
    jp.convert(source, tmp_path / "t", layout="transformers")
    config = json.loads((tmp_path / "t" / "config.json").read_text())
    generation = json.loads((tmp_path / "t" / "generation_config.json").read_text())
    assert (
        config["image_token_id"]
        == moved.token_to_id("<image_placeholder>")
        != plain.token_to_id("<image_placeholder>")
    )
    assert config["text_config"]["bos_token_id"] == moved.token_to_id(BOS)
    assert generation["pad_token_id"] == moved.token_to_id(PAD)
    assert generation["generation_kwargs"]["boi_token_id"] == moved.token_to_id("<begin_of_image>")
    assert jp.load(source).tokenizer.id_of("<begin_of_image>") == moved.token_to_id("<begin_of_image>")


@pytest.mark.parametrize("layout", ["native", "transformers", "official"])
def test_values_that_are_not_finite_are_told(official, tensors, tmp_path, layout):
    adapter = {"native": "understanding.image.adapter", "transformers": "model.aligner"}.get(
        layout, "aligner"
    )
    made = {name: value.clone() for name, value in tensors.items()}
    made["gen_embed.weight"][3, 1] = float("nan")
    made["aligner.layers.0.bias"][0] = float("-inf")
    source = write_official(tmp_path / "o", made, make_tokenizer())
    whole, broken = (
        jp.convert(each, tmp_path / f"{each.name}-out", layout).notes for each in (official, source)
    )
    (told,) = set(broken) - set(whole)
    assert told.startswith(f"NaN or infinite values in {adapter}.")
    assert " and 1 more, written as they are" in told


def test_the_command_line(official, tmp_path):
    run = CliRunner()
    done = run.invoke(app, ["convert", str(official), str(tmp_path / "t"), "--layout", "transformers"])
    assert done.exit_code == 0, done.output
    assert "official -> transformers, 254 tensors" in done.output
    assert "14 extra tensors kept" in done.output
    taken = run.invoke(app, ["convert", str(official), str(tmp_path / "t")])
    assert isinstance(taken.exception, CheckpointError)
    assert taken.exception.exit_code == 4
