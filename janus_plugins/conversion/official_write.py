"""Write the text files of an official folder: config.json, tokenizer and processor files."""

from __future__ import annotations

from typing import Any

from janus_plugins.conversion.architecture import Architecture, Vision, Vq
from janus_plugins.conversion.description import (
    CONFIG,
    DEFAULT_TOKENS,
    NEW,
    PREPROCESSOR,
    PROCESSOR,
    SPECIAL_TOKENS,
    TOKENIZER,
    TOKENIZER_CONFIG,
    Description,
    dump,
)
from janus_plugins.conversion.official import MODEL_TYPE, SFT_FORMATS, SIGLIPS, VQ_CODES, VQS
from janus_plugins.conversion.reading import write_llama
from janus_plugins.core.errors import CheckpointError
from janus_plugins.sequence.templates import TEMPLATES


def write(description: Description, tokenizer_json: str, dtype: str) -> dict[str, str]:
    """Return an official folder's files but for the weights.

    Args:
        description: what the model is.
        tokenizer_json: its tokenizer.
        dtype: torch's name of the language model's dtype.

    Raises:
        CheckpointError: the official layout cannot say it.
    """
    pixels = description.pixels
    preprocessor = {
        "background_color": [int(mean * 255) for mean in pixels.image_mean],
        "do_normalize": pixels.do_normalize,
        "image_mean": list(pixels.image_mean),
        "image_processor_type": "VLMImageProcessor",
        "image_size": pixels.image_size,
        "image_std": list(pixels.image_std),
        "min_size": pixels.min_size,
        "processor_class": "VLChatProcessor",
        "rescale_factor": pixels.rescale_factor,
    }
    processor = {
        "add_special_token": False,
        "ignore_id": -100,
        "image_tag": description.tokens.placeholder,
        "mask_prompt": True,
        "num_image_tokens": description.num_image_tokens,
        "processor_class": "VLChatProcessor",
        "sft_format": _sft_format(description),
    }
    if (description.tokens.begin, description.tokens.end) != (DEFAULT_TOKENS.begin, DEFAULT_TOKENS.end):
        processor |= {"image_start_tag": description.tokens.begin, "image_end_tag": description.tokens.end}
    return {
        CONFIG: dump(_config(description.architecture, dtype)),
        TOKENIZER: tokenizer_json,
        TOKENIZER_CONFIG: dump(_tokenizer_config(description)),
        SPECIAL_TOKENS: dump(_special_tokens(description)),
        PREPROCESSOR: dump(preprocessor),
        PROCESSOR: dump(processor),
    }


def _sft_format(description: Description) -> str:
    for said, name in SFT_FORMATS.items():
        if description.chat == TEMPLATES[name]:
            return said
    raise CheckpointError(
        f"the chat template {description.template!r:.60} has no name in the official layout, which knows "
        f"{' and '.join(SFT_FORMATS.values())} only; use the native or the transformers layout"
    )


def _config(architecture: Architecture, dtype: str) -> dict[str, Any]:
    vision, vq, hidden = architecture.vision, architecture.vq, architecture.llama.hidden_size
    codes = {"image_token_size": vq.codebook_size, "n_embed": vq.code_width}
    head = {"image_token_embed": vq.head_width, "image_token_size": vq.codebook_size, "n_embed": hidden}
    return {
        "architectures": ["MultiModalityCausalLM"],
        "model_type": MODEL_TYPE,
        "torch_dtype": dtype,
        "vision_config": {"cls": "CLIPVisionTower", "model_type": "vision", "params": _vision_params(vision)},
        "aligner_config": _aligner_config("aligner", vision.adapter_depth, vision.width, hidden),
        "gen_vision_config": {
            "cls": "VQ-16",
            "model_type": "gen_vision",
            "params": {**codes, **_other(_vq_sizes(vq), VQS["VQ-16"])},
        },
        "gen_aligner_config": _aligner_config("gen_aligner", vq.adapter_depth, vq.code_width, hidden),
        "gen_head_config": {"cls": "vision_head", "model_type": "gen_head", "params": head},
        "language_config": {**write_llama(architecture.llama), "torch_dtype": dtype},
    }


def _aligner_config(model_type: str, depth: int, width_in: int, width_out: int) -> dict[str, Any]:
    params = {"depth": depth, "input_dim": width_in, "n_embed": width_out, "projector_type": "mlp_gelu"}
    return {"cls": "MlpProjector", "model_type": model_type, "params": params}


def _vision_params(vision: Vision) -> dict[str, Any]:
    sizes = {
        "width": vision.width,
        "layers": vision.depth,
        "heads": vision.heads,
        "patch_size": vision.patch_size,
        "mlp_ratio": vision.mlp_ratio,
    }
    name = next((name for name, named in SIGLIPS.items() if named == sizes), "siglip_large_patch16_384")
    return {
        "image_size": vision.image_size,
        "model_name": name,
        "select_feature": "same",
        "select_layer": -1,
        **_other(sizes, SIGLIPS[name]),
    }


def _vq_sizes(vq: Vq) -> dict[str, Any]:
    return {
        "ch": vq.channels,
        "encoder_ch_mult": vq.multipliers,
        "num_res_blocks": vq.num_res_blocks,
        "z_channels": vq.z_channels,
    }


def _other(sizes: dict[str, Any], named: dict[str, Any]) -> dict[str, Any]:
    """Return the sizes that a name does not stand for."""
    return {key: list(value) if isinstance(value, tuple) else value
            for key, value in sizes.items() if value != named[key]}  # fmt: skip


def is_standard(architecture: Architecture) -> bool:
    """Say whether the official code itself can build a model of these sizes."""
    named = _config(architecture, "")
    vision, vq = named["vision_config"]["params"], named["gen_vision_config"]["params"]
    spelt = {"width", "layers", "heads", "patch_size", "mlp_ratio"} & set(vision)
    codes = {"image_token_size": vq["image_token_size"], "n_embed": vq["n_embed"]}
    return not (spelt or len(vq) > len(codes)) and codes == VQ_CODES


def _tokenizer_config(description: Description) -> dict[str, Any]:
    chat = description.chat
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": chat.bos,
        "clean_up_tokenization_spaces": False,
        "eos_token": chat.eos,
        "model_max_length": description.architecture.llama.max_positions,
        "pad_token": chat.pad,
        "tokenizer_class": "LlamaTokenizerFast",
        "unk_token": None,
        "use_default_system_prompt": True,
    }


def _special_tokens(description: Description) -> dict[str, Any]:
    chat, tokens = description.chat, description.tokens
    roles = [chat.user, chat.assistant] if chat == TEMPLATES[NEW] else []
    return {
        "additional_special_tokens": [tokens.placeholder, *roles],
        "bos_token": chat.bos,
        "eos_token": chat.eos,
        "pad_token": chat.pad,
    }
