"""Write the text files of a transformers folder: configs, tokenizer, processor and chat template."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer

from janus_plugins.conversion.architecture import Architecture
from janus_plugins.conversion.chat_template import chat_template
from janus_plugins.conversion.description import (
    CHAT_TEMPLATE,
    CONFIG,
    GENERATION,
    PREPROCESSOR,
    PROCESSOR,
    TOKENIZER,
    TOKENIZER_CONFIG,
    Description,
    Pixels,
    dump,
)
from janus_plugins.conversion.reading import write_llama
from janus_plugins.conversion.transformers_layout import MODEL_TYPE, TOKEN_FIELDS
from janus_plugins.core.errors import CheckpointError


def write(description: Description, tokenizer_json: str, dtype: str) -> dict[str, str]:
    """Return a transformers folder's files but for the weights.

    Args:
        description: what the model is.
        tokenizer_json: its tokenizer.
        dtype: torch's name of the language model's dtype.

    Raises:
        CheckpointError: transformers' layout cannot say it.
    """
    architecture, tokens, chat = description.architecture, description.tokens, description.chat
    if architecture.vq.head_width != architecture.llama.hidden_size:
        raise CheckpointError(
            f"generation.image.head has width {architecture.vq.head_width}; in transformers' layout it is "
            f"the language model's, {architecture.llama.hidden_size}"
        )
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer_json = _with_bos(tokenizer_json, chat.bos, tokenizer)
    ids = {
        f"{name}_token_id": _id_of(token, tokenizer)
        for name, token in (("bos", chat.bos), ("eos", chat.eos), ("pad", chat.pad))
    }
    generation = {
        "temperature": 1.0,
        "guidance_scale": 5.0,
        **ids,
        "generation_kwargs": {"boi_token_id": _id_of(tokens.begin, tokenizer)},
    }
    processor = {
        "num_image_tokens": description.num_image_tokens,
        "processor_class": "JanusProcessor",
        "use_default_system_prompt": bool(chat.system),
    }
    image_token_id = _id_of(tokens.placeholder, tokenizer)
    return {
        CONFIG: dump(_config(architecture, ids, image_token_id, dtype)),
        GENERATION: dump(generation),
        TOKENIZER: tokenizer_json,
        TOKENIZER_CONFIG: dump(_tokenizer_config(description)),
        PREPROCESSOR: dump(_preprocessor(description.pixels)),
        PROCESSOR: dump(processor),
        CHAT_TEMPLATE: chat_template(chat, tokens),
    }


def _id_of(token: str, tokenizer: Tokenizer) -> int:
    found: int | None = tokenizer.token_to_id(token)
    if found is None:
        raise CheckpointError(
            f"the model's tokenizer has no token {token!r}, and transformers' layout names its id"
        )
    return found


def _config(
    architecture: Architecture, ids: dict[str, int], image_token_id: int, dtype: str
) -> dict[str, Any]:
    vision, vq, llama = architecture.vision, architecture.vq, architecture.llama
    return {
        "architectures": ["JanusForConditionalGeneration"],
        "model_type": MODEL_TYPE,
        "torch_dtype": dtype,
        "image_token_id": image_token_id,
        "tie_word_embeddings": llama.tie,
        "text_config": {**write_llama(llama), **ids, "torch_dtype": dtype},
        "vision_config": {
            "model_type": "janus_vision_model",
            "hidden_size": vision.width,
            "num_hidden_layers": vision.depth,
            "num_attention_heads": vision.heads,
            "num_channels": 3,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-6,
            "mlp_ratio": vision.mlp_ratio,
            "attention_bias": True,
            "use_qk_norm": False,
            "projection_dim": llama.hidden_size,
            "depth": vision.adapter_depth,
            "num_image_tokens": vision.side**2,
            "torch_dtype": dtype,
        },
        "vq_config": {
            "model_type": "janus_vqgan",
            "embed_dim": vq.code_width,
            "num_embeddings": vq.codebook_size,
            "double_latent": False,
            "latent_channels": vq.z_channels,
            "in_channels": 3,
            "out_channels": 3,
            "base_channels": vq.channels,
            "channel_multiplier": list(vq.multipliers),
            "num_res_blocks": vq.num_res_blocks,
            "num_patches": vision.side,
            "projection_dim": llama.hidden_size,
            "num_hidden_layers": vq.adapter_depth,
            "hidden_act": "gelu",
            "image_token_embed_dim": vq.head_width,
            "torch_dtype": dtype,
        },
    }


def _with_bos(tokenizer_json: str, bos: str, tokenizer: Tokenizer) -> str:
    """Return a tokenizer that puts BOS first by itself.

    The official code's tokenizer class does that; transformers 5 no longer listens to `add_bos_token` for
    a byte-level tokenizer.
    """
    bos_id = tokenizer.token_to_id(bos)
    if tokenizer.encode("a").ids[:1] == [bos_id]:
        return tokenizer_json
    data = json.loads(tokenizer_json)
    first, single = {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    pair = [
        first,
        single,
        {"SpecialToken": {"id": bos, "type_id": 1}},
        {"Sequence": {"id": "B", "type_id": 1}},
    ]
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [first, single],
        "pair": pair,
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }
    return json.dumps(data, indent=2, ensure_ascii=False)


def _tokenizer_config(description: Description) -> dict[str, Any]:
    chat = description.chat
    around = {name: getattr(description.tokens, field) for field, name in TOKEN_FIELDS.items()}
    return {
        "bos_token": chat.bos,
        "clean_up_tokenization_spaces": False,
        "eos_token": chat.eos,
        "extra_special_tokens": around,
        **around,
        "model_max_length": description.architecture.llama.max_positions,
        "pad_token": chat.pad,
        "padding_side": "left",
        "processor_class": "JanusProcessor",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _preprocessor(pixels: Pixels) -> dict[str, Any]:
    return {
        "background_color": [int(mean * 255) for mean in pixels.image_mean],
        "do_normalize": pixels.do_normalize,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(pixels.image_mean),
        "image_processor_type": "JanusImageProcessor",
        "image_std": list(pixels.image_std),
        "min_size": pixels.min_size,
        "processor_class": "JanusProcessor",
        "resample": 3,
        "rescale_factor": pixels.rescale_factor,
        "size": {"height": pixels.image_size, "width": pixels.image_size},
    }
