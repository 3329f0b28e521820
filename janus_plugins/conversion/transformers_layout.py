"""transformers' layout: config.json of model_type `janus`, and the processor's files beside it."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer

from janus_plugins.conversion.architecture import Architecture, Llama, Vision, Vq
from janus_plugins.conversion.chat_template import chat_template
from janus_plugins.conversion.description import (
    CHAT_TEMPLATE,
    CONFIG,
    DEFAULT_TOKENS,
    GENERATION,
    NEW,
    NOT_NORMALISED,
    OLD,
    PREPROCESSOR,
    PROCESSOR,
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

MODEL_TYPE = "janus"

_VISION: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 16,
    "mlp_ratio": 4.0,
    "projection_dim": 2048,
    "depth": 2,
    "num_image_tokens": 576,
}
_VQ: dict[str, Any] = {
    "embed_dim": 8,
    "num_embeddings": 16384,
    "latent_channels": 256,
    "base_channels": 128,
    "channel_multiplier": (1, 1, 2, 2, 4),
    "num_res_blocks": 2,
    "projection_dim": 2048,
    "num_hidden_layers": 2,
    "image_token_embed_dim": 2048,
}
_PIXELS: dict[str, Any] = {"min_size": 14, "rescale_factor": 1 / 255, "do_normalize": True}
"""What files may leave out. Source: transformers, `configuration_janus.py`, `image_processing_janus.py`."""

_TOKEN_FIELDS = {"begin": "boi_token", "end": "eoi_token", "placeholder": "image_token"}


def read(files: Files, where: str, untied: bool) -> Description:
    """Return what a transformers folder's files say.

    Args:
        files: its text files.
        where: the folder, for messages.
        untied: whether its weights hold an output layer of their own.

    Raises:
        CheckpointError: a file is missing, damaged, or says something that cannot be read.
    """
    config = Fields(
        parse_json(files[CONFIG], f"{where}/{CONFIG}"),
        f"{where}/{CONFIG}",
        {"tie_word_embeddings": True, "image_token_id": 100581},
    )
    llama = read_llama(config.within("text_config", {}), True)
    llama = Llama(**{**vars(llama), "tie": not untied and config.truth("tie_word_embeddings")})
    vision = _vision(config.within("vision_config", _VISION), llama.hidden_size)
    architecture = Architecture(
        llama, vision, _vq(config.within("vq_config", _VQ), vision.side, llama.hidden_size)
    )
    tokenizer, tokens = open_tokenizer(files, where), _tokens(files, where)
    _check_image_token(config, tokenizer, tokens)
    template = _template(files, tokenizer)
    check_tokens(tokenizer, template, tokens, where)
    pixels = _pixels(files, where, vision)
    notes = () if pixels.do_normalize else (NOT_NORMALISED,)
    return Description(architecture, template, tokens, pixels, notes)


def _vision(fields: Fields, hidden: int) -> Vision:
    fields.fixed(
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        attention_bias=True,
        use_qk_norm=False,
        num_channels=3,
    )
    vision = Vision(
        image_size=fields.integer("image_size"),
        patch_size=fields.integer("patch_size"),
        width=fields.integer("hidden_size"),
        depth=fields.integer("num_hidden_layers"),
        heads=fields.integer("num_attention_heads"),
        mlp_ratio=fields.number("mlp_ratio"),
        adapter_depth=fields.integer("depth"),
    )
    _same(fields, "projection_dim", hidden, "the language model's hidden_size")
    _same(fields, "num_image_tokens", vision.side**2, "the number of patches")
    return vision


def _vq(fields: Fields, side: int, hidden: int) -> Vq:
    fields.fixed(double_latent=False, in_channels=3, out_channels=3, hidden_act="gelu")
    _same(fields, "projection_dim", hidden, "the language model's hidden_size")
    _same(fields, "image_token_embed_dim", hidden, "the language model's hidden_size")
    multipliers = fields.integers("channel_multiplier")
    return Vq(
        image_size=side * 2 ** (len(multipliers) - 1),  # transformers too takes `side` from the vision config
        channels=fields.integer("base_channels"),
        multipliers=multipliers,
        num_res_blocks=fields.integer("num_res_blocks"),
        z_channels=fields.integer("latent_channels"),
        code_width=fields.integer("embed_dim"),
        codebook_size=fields.integer("num_embeddings"),
        adapter_depth=fields.integer("num_hidden_layers"),
        head_width=hidden,
    )


def _same(fields: Fields, name: str, wanted: int, what: str) -> None:
    given = fields.integer(name)
    if given != wanted:
        raise CheckpointError(f"{fields.where}: {name} is {given}, but {what} is {wanted}")


def _tokens(files: Files, where: str) -> ItemTokens:
    """Return the tokens around a picture; old and new transformers keep them in different places."""
    path = f"{where}/{TOKENIZER_CONFIG}"
    config = parse_json(files.get(TOKENIZER_CONFIG, "{}"), path)
    named: dict[str, str] = {}
    for field, name in _TOKEN_FIELDS.items():
        for holder in (
            config,
            config.get("extra_special_tokens"),
            config.get("model_specific_special_tokens"),
        ):
            value = holder.get(name) if isinstance(holder, dict) else None
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                named.setdefault(field, value)
    return ItemTokens(**{**DEFAULT_TOKENS.model_dump(), **named})


def _check_image_token(config: Fields, tokenizer: Tokenizer, tokens: ItemTokens) -> None:
    said, found = config.integer("image_token_id"), tokenizer.token_to_id(tokens.placeholder)
    if said != found:
        raise CheckpointError(
            f"{config.where}: image_token_id is {said}, but {tokens.placeholder!r} has id {found}"
        )


def _template(files: Files, tokenizer: Tokenizer) -> str:
    """Return the generation whose template the folder holds; of another text the tokenizer decides."""
    held = files.get(CHAT_TEMPLATE)
    for name in (NEW, OLD):
        if held is not None and held == chat_template(TEMPLATES[name], DEFAULT_TOKENS):
            return name
    return template_by_tokens(tokenizer)


def _pixels(files: Files, where: str, vision: Vision) -> Pixels:
    """Read the image processor's settings from its own file, or from inside the processor's."""
    for file, name in ((PROCESSOR, "image_processor"), (PREPROCESSOR, "")):
        path = f"{where}/{file}"
        data = parse_json(files.get(file, "{}"), path)
        data = data.get(name, {}) if name else data
        if data:
            fields = Fields(data, path, _PIXELS)
            size = fields.within("size", {"height": vision.image_size, "width": vision.image_size})
            size.fixed(height=vision.image_size, width=vision.image_size)
            return read_pixels(fields, vision.image_size)
    return Pixels(vision.image_size)


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
        f"{name}_token_id": tokenizer.token_to_id(token)
        for name, token in (("bos", chat.bos), ("eos", chat.eos), ("pad", chat.pad))
    }
    generation = {
        "temperature": 1.0,
        "guidance_scale": 5.0,
        **ids,
        "generation_kwargs": {"boi_token_id": tokenizer.token_to_id(tokens.begin)},
    }
    processor = {
        "num_image_tokens": description.num_image_tokens,
        "processor_class": "JanusProcessor",
        "use_default_system_prompt": bool(chat.system),
    }
    image_token_id = tokenizer.token_to_id(tokens.placeholder)
    return {
        CONFIG: dump(_config(architecture, ids, image_token_id, dtype)),
        GENERATION: dump(generation),
        TOKENIZER: tokenizer_json,
        TOKENIZER_CONFIG: dump(_tokenizer_config(description)),
        PREPROCESSOR: dump(_preprocessor(description.pixels)),
        PROCESSOR: dump(processor),
        CHAT_TEMPLATE: chat_template(chat, tokens),
    }


def _config(
    architecture: Architecture, ids: dict[str, int | None], image_token_id: int | None, dtype: str
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
    around = {name: getattr(description.tokens, field) for field, name in _TOKEN_FIELDS.items()}
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
