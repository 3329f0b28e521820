"""The published files' own config.json, at full size: read as the papers' models, to the last parameter."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from transformers import JanusConfig

from janus_plugins.conversion import official, official_write, transformers_layout, transformers_write
from janus_plugins.conversion.architecture import architecture_of
from janus_plugins.conversion.description import Description, Pixels, open_tokenizer
from janus_plugins.conversion.extras import extra_shapes
from janus_plugins.conversion.keys import place_of, shapes_in
from janus_plugins.conversion.sizes import check_sizes
from janus_plugins.core.schema import ItemTokens
from janus_plugins.door import plan
from janus_plugins.model.compose import compose_plan
from janus_plugins.model.tensor_file import Entry
from tests.conversion.made import BOS, EOS, PAD, make_tokenizer

TOTALS = {"janus_1.3b": 2_089_232_011, "janus_pro_1b": 2_089_232_011, "janus_pro_7b": 7_420_368_523}
LANGUAGE: dict[str, dict[str, Any]] = {
    "janus_1.3b": {
        "_attn_implementation": "flash_attention_2", "hidden_size": 2048, "intermediate_size": 5632,
        "max_position_embeddings": 16384, "model_type": "llama", "num_attention_heads": 16,
        "num_hidden_layers": 24, "num_key_value_heads": 16, "torch_dtype": "bfloat16", "vocab_size": 102400,
    },
    # Its width, inner width and heads are what a Llama has by default, and are not written.
    "janus_pro_7b": {
        "max_position_embeddings": 16384, "model_type": "llama", "num_hidden_layers": 30,
        "torch_dtype": "bfloat16", "vocab_size": 102400,
    },
}  # fmt: skip
LANGUAGE["janus_pro_1b"] = LANGUAGE["janus_1.3b"]


def published(name: str) -> dict[str, Any]:
    """A published config.json. Source: the model pages of Janus-1.3B and Janus-Pro."""
    width = 4096 if name == "janus_pro_7b" else 2048
    aligner = {
        "cls": "MlpProjector",
        "model_type": "aligner",
        "params": {"depth": 2, "input_dim": 1024, "n_embed": width, "projector_type": "mlp_gelu"},
    }
    gen_aligner = {
        "cls": "MlpProjector",
        "model_type": "gen_aligner",
        "params": {"depth": 2, "input_dim": 8, "n_embed": width, "projector_type": "mlp_gelu"},
    }
    return {
        "aligner_config": aligner,
        "gen_aligner_config": gen_aligner,
        "gen_head_config": {"cls": "vision_head", "model_type": "gen_head", "params": {"image_token_embed": width, "image_token_size": 16384, "n_embed": width}},
        "gen_vision_config": {"cls": "VQ-16", "model_type": "gen_vision", "params": {"image_token_size": 16384, "n_embed": 8}},
        "language_config": LANGUAGE[name],
        "model_type": "multi_modality",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.33.1",
        "vision_config": {"cls": "CLIPVisionTower", "model_type": "vision", "params": {"image_size": 384, "model_name": "siglip_large_patch16_384", "select_feature": "same", "select_layer": -1}},
    }  # fmt: skip


def read(files: dict[str, str], reader=official.read) -> Description:
    made = make_tokenizer()
    return reader({**files, "tokenizer.json": made.to_str()}, "DIR", True)


@pytest.mark.parametrize("name", TOTALS)
def test_official_config(name):
    config = published(name)
    described = read({"config.json": json.dumps(config)})
    assert described.architecture == architecture_of(plan(name))
    assert described.template == "deepseek"
    assert official_write.is_standard(described.architecture)
    written = json.loads(
        official_write.write(described, make_tokenizer().to_str(), "bfloat16")["config.json"]
    )
    for part in (
        "vision_config",
        "gen_vision_config",
        "aligner_config",
        "gen_aligner_config",
        "gen_head_config",
    ):
        assert written[part] == config[part]
    assert written["language_config"].items() >= (
        LANGUAGE[name].items() - {("_attn_implementation", "flash_attention_2")}
    )
    assert read({"config.json": json.dumps(written)}) == described


@pytest.mark.parametrize(("codes", "width"), [(8192, 8), (16384, 16)])
def test_the_official_code_builds_one_size_of_codebook(codes, width):
    """Its VQ-16 is built without the config's `image_token_size` and `n_embed`: 16,384 codes of width 8."""
    standard = architecture_of(plan("janus_pro_1b"))
    vq = replace(standard.vq, codebook_size=codes, code_width=width)
    assert not official_write.is_standard(replace(standard, vq=vq))


@pytest.mark.parametrize("name", TOTALS)
def test_every_parameter_of_the_published_file(name):
    """Names and shapes add up to the file's size, SigLIP's pooling head included, the record of codes not."""
    architecture = architecture_of(plan(name))
    model = compose_plan(plan(name), object(), weights=False, device="meta")
    shapes = {
        place_of(key, "official").names[0]: tuple(value.shape) for key, value in model.state_dict().items()
    }
    extras = dict(extra_shapes(architecture))
    record = extras.pop("gen_vision_model.quantize.codebook_used")
    assert record == (65536,)
    assert sum(map(math.prod, extras.values())) == 12_595_200
    assert sum(map(math.prod, {**shapes, **extras}.values())) == TOTALS[name]
    halves = [place_of(key, "transformers") for key in model.state_dict()]
    cut = [
        shapes_in(tuple(value.shape), place.form)
        for value, place in zip(model.state_dict().values(), halves, strict=True)
    ]
    number = sum(math.prod(shape) * len(place.names) for shape, place in zip(cut, halves, strict=True))
    assert number == TOTALS[name] - 12_595_200


@pytest.mark.parametrize("name", TOTALS)
@pytest.mark.parametrize("layout", ["official", "transformers"])
def test_the_telling_sizes_are_those_of_the_model(name, layout):
    model = compose_plan(plan(name), object(), weights=False, device="meta")
    entries = {}
    for key, value in model.state_dict().items():
        place = place_of(key, layout)
        shape = shapes_in(tuple(value.shape), place.form)
        entries |= dict.fromkeys(place.names, Entry("BF16", shape))
    check_sizes(architecture_of(plan(name)), entries, layout, "DIR")


def test_transformers_config():
    """The defaults of JanusConfig are Janus-Pro-1B's, but for the language model's."""
    ids = {"bos_token_id": 320, "eos_token_id": 321, "pad_token_id": 323}
    text = {**LANGUAGE["janus_pro_1b"], **ids}
    config = JanusConfig(text_config=text, image_token_id=326, tie_word_embeddings=False).to_dict()
    described = read({"config.json": json.dumps(config)}, transformers_layout.read)
    assert described.architecture == architecture_of(plan("janus_pro_1b"))
    written = transformers_write.write(described, make_tokenizer().to_str(), "bfloat16")
    again = JanusConfig.from_dict(json.loads(written["config.json"]))
    assert read({**written}, transformers_layout.read) == described
    for part in ("vision_config", "vq_config"):
        ours, theirs = again.to_dict()[part], config[part]
        assert {key: ours[key] for key in theirs if key != "dtype"} == {
            k: v for k, v in theirs.items() if k != "dtype"
        }
    assert again.tie_word_embeddings is False
    assert again.text_config.pad_token_id == 323


def test_a_tokenizer_without_a_bos_of_its_own_gets_one_for_transformers():
    description = Description(
        architecture_of(plan("janus_pro_1b")), "deepseek",
        ItemTokens(begin="<begin_of_image>", end="<end_of_image>", placeholder="<image_placeholder>"), Pixels(384),
    )  # fmt: skip
    plain = make_tokenizer().to_str()
    files = transformers_write.write(description, plain, "bfloat16")
    made, before = open_tokenizer(files, "DIR"), make_tokenizer()
    ids = before.encode("User: a cat").ids
    assert made.encode("User: a cat").ids == [before.token_to_id(BOS), *ids]
    assert made.encode("User: a cat", add_special_tokens=False).ids == ids
    assert {made.token_to_id(each) for each in (EOS, PAD)} == {
        before.token_to_id(each) for each in (EOS, PAD)
    }
    again = transformers_write.write(description, files["tokenizer.json"], "bfloat16")
    assert again["tokenizer.json"] == files["tokenizer.json"]
