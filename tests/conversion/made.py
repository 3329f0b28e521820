"""Checkpoints of full structure and small sizes, with random weights, made by transformers' own classes.

The official layout is made of the same weights by renaming their keys here, by hand: independent of the
table under test.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import JanusConfig, JanusForConditionalGeneration

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
ROLES = ["<|User|>", "<|Assistant|>"]
HIDDEN, VOCAB, CODES = 48, 420, 64
TEXTS = [
    "You are a helpful language and vision assistant. You are able to understand the visual content.",
    "User: What is in this picture?\n\nAssistant: A small red cube on a large blue table.",
    "User: a photo of a cat\n\nAssistant:",
]


def make_tokenizer(roles: bool = True, placeholder: bool = True) -> Tokenizer:
    """A byte-level BPE tokenizer with DeepSeek's special strings; role tags are tokens in Janus-Pro's only."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    special = [BOS, EOS, "<unused>", PAD, "<begin_of_image>", "<end_of_image>"]
    special += ["<image_placeholder>"] if placeholder else []
    special += ROLES if roles else []
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return made


def make_config(tokenizer: Tokenizer) -> JanusConfig:
    ids = {name: tokenizer.token_to_id(token) for name, token in (("bos", BOS), ("eos", EOS), ("pad", PAD))}
    text = {
        "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 256, **{f"{name}_token_id": value for name, value in ids.items()},
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
        "mlp_ratio": 2.0, "projection_dim": HIDDEN, "num_image_tokens": 16,
    }  # fmt: skip
    vq = {
        "embed_dim": 8, "num_embeddings": CODES, "latent_channels": 32, "base_channels": 32,
        "channel_multiplier": [1, 1, 2], "num_res_blocks": 1, "num_patches": 4, "projection_dim": HIDDEN,
        "image_token_embed_dim": HIDDEN,
    }  # fmt: skip
    return JanusConfig(
        text_config=text, vision_config=vision, vq_config=vq,
        image_token_id=tokenizer.token_to_id("<image_placeholder>"), tie_word_embeddings=False,
    )  # fmt: skip


def make_model(tokenizer: Tokenizer, seed: int = 0, scale: float = 6.0) -> JanusForConditionalGeneration:
    """Random weights, larger than initial ones so that logits differ clearly from one another."""
    torch.manual_seed(seed)
    model = JanusForConditionalGeneration(make_config(tokenizer)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "vqmodel" not in name:
                parameter.mul_(scale)
            elif parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        # Rows that stand for no token: transformers may choose them, this package never does.
        model.lm_head.weight[tokenizer.get_vocab_size() :] = 0
        lengths = torch.rand(CODES, 1) * 3 + 0.2  # of the codes; they must not matter
        model.model.vqmodel.quantize.embedding.weight.mul_(lengths * 50)
    return model


def official_tensors(model: JanusForConditionalGeneration, extras: bool = True) -> dict[str, Tensor]:
    """The same weights under the official names, with what official files hold beside them."""
    state = model.state_dict()
    made: dict[str, Tensor] = {}
    for name, tensor in state.items():
        new = _official(name)
        if new is None:
            continue
        made[new] = tensor[None] if new.endswith("pos_embed") else tensor.clone()
    for layer in range(2):
        for leaf in ("weight", "bias"):
            parts = [
                state[f"model.vision_model.encoder.layers.{layer}.self_attn.{each}_proj.{leaf}"]
                for each in "qkv"
            ]
            made[f"vision_model.vision_tower.blocks.{layer}.attn.qkv.{leaf}"] = torch.cat(parts)
    return {**made, **(make_extras() if extras else {})}


def _official(name: str) -> str | None:
    rules: list[tuple[str, str | None]] = [
        (r"^lm_head", "language_model.lm_head"),
        (r"^model\.language_model\.", "language_model.model."),
        (r"^model\.generation_embeddings", "gen_embed"),
        (r"^model\.generation_head\.proj_out", "gen_head.output_mlp_projector"),
        (r"^model\.generation_head\.", "gen_head."),
        (r"^model\.generation_aligner\.fc1", "gen_aligner.layers.0"),
        (r"^model\.generation_aligner\.hidden_layers\.0", "gen_aligner.layers.2"),
        (r"^model\.aligner\.fc1", "aligner.layers.0"),
        (r"^model\.aligner\.hidden_layers\.0", "aligner.layers.2"),
        (r"^.*\.[qkv]_proj\.(weight|bias)$(?<!x)", None),
        (r"^model\.vision_model\.embeddings\.position_embedding\.weight", "vision_model.vision_tower.pos_embed"),
        (r"^model\.vision_model\.embeddings\.patch_embedding", "vision_model.vision_tower.patch_embed.proj"),
        (r"^model\.vision_model\.post_layernorm", "vision_model.vision_tower.norm"),
        (r"^model\.vision_model\.encoder\.layers\.(\d+)\.self_attn\.projection_layer", r"vision_model.vision_tower.blocks.\1.attn.proj"),
        (r"^model\.vision_model\.encoder\.layers\.(\d+)\.layer_norm", r"vision_model.vision_tower.blocks.\1.norm"),
        (r"^model\.vision_model\.encoder\.layers\.", "vision_model.vision_tower.blocks."),
        (r"^model\.vqmodel\.(encoder|decoder)\.(?:down|up)\.(\d+)\.block\.", r"gen_vision_model.\1.conv_blocks.\2.res."),
        (r"^model\.vqmodel\.(encoder|decoder)\.(?:down|up)\.", r"gen_vision_model.\1.conv_blocks."),
        (r"^model\.vqmodel\.(encoder|decoder)\.mid\.block_1\.", r"gen_vision_model.\1.mid.0."),
        (r"^model\.vqmodel\.(encoder|decoder)\.mid\.attn_1\.", r"gen_vision_model.\1.mid.1."),
        (r"^model\.vqmodel\.(encoder|decoder)\.mid\.block_2\.", r"gen_vision_model.\1.mid.2."),
        (r"^model\.vqmodel\.", "gen_vision_model."),
    ]  # fmt: skip
    for pattern, new in rules:
        if new is None and "language_model" in name:
            continue
        if re.search(pattern, name):
            return None if new is None else re.sub(pattern, new, name)
    raise AssertionError(name)


def make_extras(width: int = 32, inner: int = 64) -> dict[str, Tensor]:
    """SigLIP's pooling head and the record of used codes."""
    generator = torch.Generator().manual_seed(7)
    pool = "vision_model.vision_tower.attn_pool"
    shapes = {
        "latent": (1, 1, width), "q.weight": (width, width), "q.bias": (width,), "kv.weight": (2 * width, width),
        "kv.bias": (2 * width,), "proj.weight": (width, width), "proj.bias": (width,), "norm.weight": (width,),
        "norm.bias": (width,), "mlp.fc1.weight": (inner, width), "mlp.fc1.bias": (inner,),
        "mlp.fc2.weight": (width, inner), "mlp.fc2.bias": (width,),
    }  # fmt: skip
    made = {f"{pool}.{name}": torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    made["gen_vision_model.quantize.codebook_used"] = torch.randint(
        CODES, (65536,), generator=generator
    ).float()
    return made


def official_config() -> dict[str, Any]:
    """As the published files have it, plus the small sizes under the official classes' own field names."""
    return {
        "_name_or_path": "made",
        "aligner_config": {"cls": "MlpProjector", "model_type": "aligner", "params": {"depth": 2, "input_dim": 32, "n_embed": HIDDEN, "projector_type": "mlp_gelu"}},
        "gen_aligner_config": {"cls": "MlpProjector", "model_type": "gen_aligner", "params": {"depth": 2, "input_dim": 8, "n_embed": HIDDEN, "projector_type": "mlp_gelu"}},
        "gen_head_config": {"cls": "vision_head", "model_type": "gen_head", "params": {"image_token_embed": HIDDEN, "image_token_size": CODES, "n_embed": HIDDEN}},
        "gen_vision_config": {"cls": "VQ-16", "model_type": "gen_vision", "params": {"image_token_size": CODES, "n_embed": 8, "ch": 32, "encoder_ch_mult": [1, 1, 2], "num_res_blocks": 1, "z_channels": 32}},
        "language_config": {"hidden_size": HIDDEN, "intermediate_size": 64, "max_position_embeddings": 256, "model_type": "llama", "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2, "torch_dtype": "bfloat16", "vocab_size": VOCAB},
        "model_type": "multi_modality",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.33.1",
        "vision_config": {"cls": "CLIPVisionTower", "model_type": "vision", "params": {"image_size": 32, "model_name": "siglip_large_patch16_384", "select_feature": "same", "select_layer": -1, "width": 32, "layers": 2, "heads": 2, "patch_size": 8, "mlp_ratio": 2.0}},
    }  # fmt: skip


def write_official(
    folder: Path,
    tensors: dict[str, Tensor],
    tokenizer: Tokenizer,
    sft_format: str = "deepseek",
    form: str = "safetensors",
) -> Path:
    """Write an official folder: one safetensors file, or pickled shards with an index."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(official_config(), indent=2))
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "additional_special_tokens": ["<image_placeholder>", *ROLES],
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2))
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": None,
        "model_max_length": 256,
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": None,
        "use_default_system_prompt": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    preprocessor = {
        "background_color": [127, 127, 127],
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_processor_type": "VLMImageProcessor",
        "image_size": 32,
        "image_std": [0.5] * 3,
        "min_size": 14,
        "processor_class": "VLChatProcessor",
        "rescale_factor": 0.00392156862745098,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2))
    processor = {
        "add_special_token": False,
        "ignore_id": -100,
        "image_tag": "<image_placeholder>",
        "mask_prompt": True,
        "num_image_tokens": 16,
        "processor_class": "VLChatProcessor",
        "sft_format": sft_format,
    }
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=2))
    if form == "safetensors":
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        write_bin(folder, tensors)
    return folder


def write_bin(folder: Path, tensors: dict[str, Tensor], number: int = 2) -> None:
    """Write pickled shards with an index, as Janus-Pro has them."""
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for index in range(number):
        file = f"pytorch_model-{index + 1:05}-of-{number:05}.bin"
        part = {name: tensors[name] for name in names[index::number]}
        torch.save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder's model*.safetensors, by the library's own reader."""
    from safetensors.torch import load_file

    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        found |= load_file(file)
    return found
