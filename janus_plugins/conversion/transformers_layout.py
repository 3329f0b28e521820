"""transformers' layout: config.json of model_type `janus`, and the processor's files beside it."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer

from janus_plugins.conversion.architecture import Architecture, Llama, Vision, Vq
from janus_plugins.conversion.chat_template import chat_template
from janus_plugins.conversion.description import (
    CHAT_TEMPLATE,
    CONFIG,
    DEFAULT_TOKENS,
    NEW,
    NOT_NORMALISED,
    OLD,
    PREPROCESSOR,
    PROCESSOR,
    TOKENIZER_CONFIG,
    Description,
    Files,
    Pixels,
    check_tokens,
    open_tokenizer,
    read_pixels,
    template_by_tokens,
)
from janus_plugins.conversion.reading import Fields, parse_json, read_llama
from janus_plugins.core.errors import CheckpointError
from janus_plugins.core.schema import ItemTokens, TemplateName
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
_SIZE = {"height": 384, "width": 384}
_BICUBIC = 3
"""What files may leave out. Source: transformers, `configuration_janus.py`, `image_processing_janus.py`."""

TOKEN_FIELDS = {"begin": "boi_token", "end": "eoi_token", "placeholder": "image_token"}


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
    for field, name in TOKEN_FIELDS.items():
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


def _template(files: Files, tokenizer: Tokenizer) -> TemplateName:
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
        fields = Fields(parse_json(files.get(file, "{}"), path), path)
        fields = fields.within(name, {}) if name else fields
        if fields:
            fields = fields.with_defaults(_PIXELS)
            fields.fixed(do_resize=True, do_pad=True, do_rescale=True, resample=_BICUBIC)
            size = fields.within("size") if fields.has("size") else Fields(_SIZE, path)
            for side in _SIZE:
                _same(size, side, vision.image_size, "the vision config's image_size")
            return read_pixels(fields, vision.image_size)
    return Pixels(vision.image_size)
