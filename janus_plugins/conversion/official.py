"""The official layout: config.json of model_type `multi_modality`, and the processor files beside it.

Its code fixes the sizes of SigLIP and of the VQ model by name. Other sizes are written beside the name, under
the field names that the official classes give them; the official code itself cannot build such a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from tokenizers import Tokenizer

from janus_plugins.conversion.architecture import Architecture, Vision, Vq
from janus_plugins.conversion.description import (
    CONFIG,
    DEFAULT_TOKENS,
    NEW,
    NOT_NORMALISED,
    OLD,
    PREPROCESSOR,
    PROCESSOR,
    SPECIAL_TOKENS,
    TOKENIZER,
    TOKENIZER_CONFIG,
    Description,
    Files,
    Pixels,
    check_tokens,
    dump,
    open_tokenizer,
    read_pixels,
    template_by_tokens,
)
from janus_plugins.conversion.reading import Fields, parse_json, read_llama, write_llama
from janus_plugins.core.errors import CheckpointError
from janus_plugins.core.schema import ItemTokens
from janus_plugins.sequence.templates import TEMPLATES

MODEL_TYPE = "multi_modality"
CODEBOOK_USED = 65536
"""Length of the record of recent codes that the VQ model keeps; it is in the files, and never read."""

_LARGE = {"width": 1024, "layers": 24, "heads": 16, "patch_size": 16, "mlp_ratio": 4.0}
_SO400M = {"width": 1152, "layers": 27, "heads": 16, "patch_size": 14, "mlp_ratio": 3.7362}
_SIGLIPS: dict[str, dict[str, Any]] = {
    "siglip_large_patch16_384": _LARGE,
    "siglip_so400m_patch14_384": _SO400M,
    "siglip_so400m_patch14_224": _SO400M,
}
"""Sizes by name. Source: Janus, `siglip_vit.py`."""

_VQS: dict[str, dict[str, Any]] = {
    "VQ-16": {"ch": 128, "encoder_ch_mult": (1, 1, 2, 2, 4), "num_res_blocks": 2, "z_channels": 256}
}
"""Sizes by name. Source: Janus, `vq_model.py`."""

_SFT_FORMATS = {"deepseek": NEW, "deepseek_old": OLD}
"""Templates by their names in `janus/utils/conversation.py`."""

_PIXELS = {"min_size": 14, "rescale_factor": 1 / 255, "do_normalize": True}


def read(files: Files, where: str, untied: bool) -> Description:
    """Return what an official folder's files say.

    Args:
        files: its text files.
        where: the folder, for messages.
        untied: whether its weights hold an output layer of their own.

    Raises:
        CheckpointError: a file is missing, damaged, or says something that cannot be read.
    """
    config = Fields(parse_json(files[CONFIG], f"{where}/{CONFIG}"), f"{where}/{CONFIG}")
    architecture = _architecture(config, untied)
    processor = Fields(parse_json(files.get(PROCESSOR, "{}"), f"{where}/{PROCESSOR}"), f"{where}/{PROCESSOR}")
    tokens = ItemTokens(
        begin=_text(processor, "image_start_tag", DEFAULT_TOKENS.begin),
        end=_text(processor, "image_end_tag", DEFAULT_TOKENS.end),
        placeholder=_text(processor, "image_tag", DEFAULT_TOKENS.placeholder),
    )
    tokenizer = open_tokenizer(files, where)
    template, notes = _template(processor, tokenizer)
    check_tokens(tokenizer, template, tokens, where)
    side = architecture.vision.side
    processor.fixed(num_image_tokens=side**2)
    pixels = _pixels(files, where, architecture.vision)
    if not pixels.do_normalize:
        notes.append(NOT_NORMALISED)
    return Description(architecture, template, tokens, pixels, tuple(notes))


def _architecture(config: Fields, untied: bool) -> Architecture:
    llama = read_llama(config.within("language_config", {}), untied)
    vision_class = config.within("vision_config")
    vision_class.fixed(cls="CLIPVisionTower")
    vq_class = config.within("gen_vision_config")
    aligner = _aligner(config, "aligner_config")
    gen_aligner = _aligner(config, "gen_aligner_config")
    head = config.within("gen_head_config")
    head.fixed(cls="vision_head")
    vision = _vision(vision_class.within("params"), aligner)
    name = vq_class.text("cls")
    if name not in _VQS:
        raise CheckpointError(f"{vq_class.where}: cls is {name!r}; only {', '.join(_VQS)} can be read")
    sizes = vq_class.within("params", _VQS[name])
    multipliers = sizes.integers("encoder_ch_mult")
    vq = Vq(
        image_size=vision.side * 2 ** (len(multipliers) - 1),
        channels=sizes.integer("ch"),
        multipliers=multipliers,
        num_res_blocks=sizes.integer("num_res_blocks"),
        z_channels=sizes.integer("z_channels"),
        code_width=sizes.integer("n_embed"),
        codebook_size=sizes.integer("image_token_size"),
        adapter_depth=gen_aligner,
        head_width=head.within("params").integer("image_token_embed"),
    )
    return Architecture(llama, vision, vq)


def _aligner(config: Fields, name: str) -> int:
    """Return the depth of an adapter."""
    block = config.within(name)
    block.fixed(cls="MlpProjector")
    params = block.within("params")
    params.fixed(projector_type="mlp_gelu")
    return params.integer("depth")


def _vision(params: Fields, adapter_depth: int) -> Vision:
    name = params.text("model_name")
    if name not in _SIGLIPS:
        raise CheckpointError(f"{params.where}: model_name is {name!r}; {', '.join(_SIGLIPS)} can be read")
    params.fixed(select_layer=-1, select_feature="same")
    if params.has("pixel_mean") or params.has("pixel_std"):
        raise CheckpointError(
            f"{params.where}: pixel_mean and pixel_std cannot be read; the processor normalises"
        )
    params = params.with_defaults(_SIGLIPS[name])
    return Vision(
        image_size=params.integer("image_size"),
        patch_size=params.integer("patch_size"),
        width=params.integer("width"),
        depth=params.integer("layers"),
        heads=params.integer("heads"),
        mlp_ratio=params.number("mlp_ratio"),
        adapter_depth=adapter_depth,
    )


def _text(fields: Fields, name: str, default: str) -> str:
    return fields.text(name) if fields.has(name) else default


def _template(processor: Fields, tokenizer: Tokenizer) -> tuple[str, list[str]]:
    """Return the chat template, and a note where the files of an old revision name the wrong one."""
    said = _text(processor, "sft_format", "deepseek")
    if said not in _SFT_FORMATS:
        raise CheckpointError(
            f"{processor.where}: sft_format is {said!r}; {' and '.join(_SFT_FORMATS)} are known"
        )
    meant = template_by_tokens(tokenizer)
    if _SFT_FORMATS[said] == NEW and meant == OLD:
        tag = TEMPLATES[NEW].user
        return OLD, [
            f"sft_format is 'deepseek', but the tokenizer has no {tag!r}: this is Janus-1.3B before "
            f"2025-01-27, when that name stood for User and Assistant; its template is {OLD}"
        ]
    return _SFT_FORMATS[said], []


def _pixels(files: Files, where: str, vision: Vision) -> Pixels:
    if PREPROCESSOR not in files:
        return Pixels(vision.image_size)
    path = f"{where}/{PREPROCESSOR}"
    fields = Fields(parse_json(files[PREPROCESSOR], path), path, _PIXELS)
    fields.fixed(image_size=vision.image_size)
    return read_pixels(fields, fields.integer("image_size"))


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
    for said, name in _SFT_FORMATS.items():
        if description.chat == TEMPLATES[name]:
            return said
    raise CheckpointError(
        f"the chat template {description.template!r:.60} has no name in the official layout, which knows "
        f"{' and '.join(_SFT_FORMATS.values())} only; use the native or the transformers layout"
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
            "params": {**codes, **_other(_vq_sizes(vq), _VQS["VQ-16"])},
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
    name = next((name for name, named in _SIGLIPS.items() if named == sizes), "siglip_large_patch16_384")
    return {
        "image_size": vision.image_size,
        "model_name": name,
        "select_feature": "same",
        "select_layer": -1,
        **_other(sizes, _SIGLIPS[name]),
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
    return not ({"width", "layers", "heads", "patch_size", "mlp_ratio"} & set(vision) or len(vq) > 2)


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


def extra_shapes(architecture: Architecture) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of what official files hold beside the model: made by its code, never run.

    SigLIP's pooling head, and the VQ model's record of codes.
    """
    width = architecture.vision.width
    inner = int(width * architecture.vision.mlp_ratio)
    pool = "vision_model.vision_tower.attn_pool"
    yield f"{pool}.latent", (1, 1, width)
    for name, rows, columns in (
        ("q", width, width),
        ("kv", 2 * width, width),
        ("proj", width, width),
        ("mlp.fc1", inner, width),
        ("mlp.fc2", width, inner),
    ):
        yield f"{pool}.{name}.weight", (rows, columns)
        yield f"{pool}.{name}.bias", (rows,)
    yield f"{pool}.norm.weight", (width,)
    yield f"{pool}.norm.bias", (width,)
    yield "gen_vision_model.quantize.codebook_used", (CODEBOOK_USED,)


def rotary_shapes(architecture: Architecture) -> Iterable[tuple[str, tuple[int, ...]]]:
    """Return name and shape of the rotary frequencies that transformers before 4.32 wrote into files."""
    llama = architecture.llama
    half = (llama.hidden_size // llama.num_heads // 2,)
    for layer in range(llama.num_layers):
        yield f"language_model.model.layers.{layer}.self_attn.rotary_emb.inv_freq", half
