"""The official layout: config.json of model_type `multi_modality`, and the processor files beside it.

Its code fixes the sizes of SigLIP and of the VQ model by name. Other sizes are written beside the name, under
the field names that the official classes give them; the official code itself cannot build such a model.
"""

from __future__ import annotations

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

MODEL_TYPE = "multi_modality"
_LARGE = {"width": 1024, "layers": 24, "heads": 16, "patch_size": 16, "mlp_ratio": 4.0}
_SO400M = {"width": 1152, "layers": 27, "heads": 16, "patch_size": 14, "mlp_ratio": 3.7362}
SIGLIPS: dict[str, dict[str, Any]] = {
    "siglip_large_patch16_384": _LARGE,
    "siglip_so400m_patch14_384": _SO400M,
    "siglip_so400m_patch14_224": _SO400M,
}
"""Sizes by name. Source: Janus, `siglip_vit.py`."""

VQS: dict[str, dict[str, Any]] = {
    "VQ-16": {"ch": 128, "encoder_ch_mult": (1, 1, 2, 2, 4), "num_res_blocks": 2, "z_channels": 256}
}
"""Sizes by name. Source: Janus, `vq_model.py`."""

VQ_CODES = {"image_token_size": 16384, "n_embed": 8}
"""The only codebook that the official code builds, whatever a config says. Source: `modeling_vlm.py`."""

SFT_FORMATS = {"deepseek": NEW, "deepseek_old": OLD}
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
    processor.fixed(num_image_tokens=side**2, add_special_token=False, pad_tag=TEMPLATES[template].pad)
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
    if name not in VQS:
        raise CheckpointError(f"{vq_class.where}: cls is {name!r}; only {', '.join(VQS)} can be read")
    sizes = vq_class.within("params", VQS[name])
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
    if name not in SIGLIPS:
        raise CheckpointError(f"{params.where}: model_name is {name!r}; {', '.join(SIGLIPS)} can be read")
    params = params.with_defaults({"select_layer": -2, **SIGLIPS[name]})
    params.fixed(select_layer=-1, select_feature="same", select_layers=None, ignore_head=True, qk_norm=False)
    if params.has("pixel_mean") or params.has("pixel_std"):
        raise CheckpointError(
            f"{params.where}: pixel_mean and pixel_std cannot be read; the processor normalises"
        )
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


def _template(processor: Fields, tokenizer: Tokenizer) -> tuple[TemplateName, list[str]]:
    """Return the chat template, and a note where the files of an old revision name the wrong one."""
    said = _text(processor, "sft_format", "deepseek")
    if said not in SFT_FORMATS:
        raise CheckpointError(
            f"{processor.where}: sft_format is {said!r}; {' and '.join(SFT_FORMATS)} are known"
        )
    meant = template_by_tokens(tokenizer)
    if SFT_FORMATS[said] == NEW and meant == OLD:
        tag = TEMPLATES[NEW].user
        return OLD, [
            f"sft_format is 'deepseek', but the tokenizer has no {tag!r}: this is Janus-1.3B before "
            f"2025-01-27, when that name stood for User and Assistant; its template is {OLD}"
        ]
    return SFT_FORMATS[said], []


def _pixels(files: Files, where: str, vision: Vision) -> Pixels:
    if PREPROCESSOR not in files:
        return Pixels(vision.image_size)
    path = f"{where}/{PREPROCESSOR}"
    fields = Fields(parse_json(files[PREPROCESSOR], path), path, _PIXELS)
    fields.fixed(image_size=vision.image_size)
    return read_pixels(fields, fields.integer("image_size"))
