"""Which tensor is called what: one table of native, official and transformers names.

Native names begin with a part's address; official ones are those of the published Janus files
(`MultiModalityCausalLM`), transformers' those of `JanusForConditionalGeneration`. Source of the pairs:
transformers, `convert_janus_weights_to_hf.py`, which reads its pairs one way only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Layout = Literal["native", "official", "transformers"]
LAYOUTS: tuple[Layout, ...] = ("native", "official", "transformers")

Form = Literal["same", "no-batch-axis", "thirds"]
"""How transformers keeps a tensor: as it is; without its first axis of length 1; cut into q, k and v."""

_MAX_DEPTH = 16
"""Most linear layers of an adapter that the table spells out."""


class Row(NamedTuple):
    """Pair the names of one tensor, or of a family: `*` is one dotted word, `**` any number of them."""

    native: str
    official: str
    transformers: str
    form: Form = "same"


def _vision() -> Iterator[Row]:
    ours, theirs, other = (
        "understanding.image.encoder.trunk",
        "vision_model.vision_tower",
        "model.vision_model",
    )
    pairs: tuple[tuple[str, str, Form], ...] = (
        ("pos_embed", "embeddings.position_embedding.weight", "no-batch-axis"),
        ("patch_embed.proj.*", "embeddings.patch_embedding.*", "same"),
        ("blocks.*.norm1.*", "encoder.layers.*.layer_norm1.*", "same"),
        ("blocks.*.attn.qkv.*", "encoder.layers.*.self_attn.QKV_proj.*", "thirds"),
        ("blocks.*.attn.proj.*", "encoder.layers.*.self_attn.projection_layer.*", "same"),
        ("blocks.*.norm2.*", "encoder.layers.*.layer_norm2.*", "same"),
        ("blocks.*.mlp.**", "encoder.layers.*.mlp.**", "same"),
        ("norm.*", "post_layernorm.*", "same"),
    )
    for name, foreign, form in pairs:
        yield Row(f"{ours}.{name}", f"{theirs}.{name}", f"{other}.{foreign}", form)


def _vq() -> Iterator[Row]:
    ours, theirs, other = "generation.image.encoder", "gen_vision_model", "model.vqmodel"
    pairs = [
        ("quantize.embedding.weight", "quantize.embedding.weight"),
        ("quant_conv.*", "quant_conv.*"),
        ("post_quant_conv.*", "post_quant_conv.*"),
    ]
    for side, level in (("encoder", "down"), ("decoder", "up")):
        pairs += [(f"{side}.{name}.*", f"{side}.{name}.*") for name in ("conv_in", "norm_out", "conv_out")]
        pairs += [
            (f"{side}.mid.{index}.**", f"{side}.mid.{name}.**")
            for index, name in enumerate(("block_1", "attn_1", "block_2"))
        ]
        pairs.append((f"{side}.conv_blocks.*.res.**", f"{side}.{level}.*.block.**"))
        pairs += [
            (f"{side}.conv_blocks.*.{name}.**", f"{side}.{level}.*.{name}.**")
            for name in ("attn", f"{level}sample")
        ]
    for name, foreign in pairs:
        yield Row(f"{ours}.{name}", f"{theirs}.{name}", f"{other}.{foreign}")


def _adapter(ours: str, theirs: str, other: str) -> Iterator[Row]:
    """Pair the layers of an MLP: 0, 2, 4 ... in a sequence with activations between them."""
    for depth in range(_MAX_DEPTH):
        foreign = "fc1" if depth == 0 else f"hidden_layers.{depth - 1}"
        yield Row(f"{ours}.layers.{2 * depth}.*", f"{theirs}.layers.{2 * depth}.*", f"{other}.{foreign}.*")


ROWS: tuple[Row, ...] = (
    Row("language_model.model.**", "language_model.model.**", "model.language_model.**"),
    Row("language_model.text_head.output.weight", "language_model.lm_head.weight", "lm_head.weight"),
    *_vision(),
    *_adapter("understanding.image.adapter", "aligner", "model.aligner"),
    *_vq(),
    Row("generation.image.adapter.table.weight", "gen_embed.weight", "model.generation_embeddings.weight"),
    *_adapter("generation.image.adapter", "gen_aligner", "model.generation_aligner"),
    Row(
        "generation.image.head.output_mlp_projector.*",
        "gen_head.output_mlp_projector.*",
        "model.generation_head.proj_out.*",
    ),
    Row(
        "generation.image.head.vision_head.*",
        "gen_head.vision_head.*",
        "model.generation_head.vision_head.*",
    ),
)


class Place(NamedTuple):
    """Say where a layout keeps a native tensor: under one name, or under three."""

    names: tuple[str, ...]
    form: Form


def place_of(native: str, layout: Layout) -> Place | None:
    """Return where `layout` keeps a native tensor, or None where it has no place for it."""
    if layout == "native":
        return Place((native,), "same")
    for row in ROWS:
        found = _pattern(row.native).fullmatch(native)
        if found is None:
            continue
        if layout == "official":
            return Place((_fill(row.official, found.groups()),), "same")
        filled = _fill(row.transformers, found.groups())
        if row.form == "thirds":
            return Place(tuple(filled.replace("QKV_proj", f"{each}_proj") for each in "qkv"), "thirds")
        return Place((filled,), row.form)
    return None


def to_native(tensors: Sequence[Tensor], form: Form) -> Tensor:
    """Return the native tensor of what a place holds."""
    if form == "thirds":
        return torch.cat(list(tensors))
    return tensors[0][None] if form == "no-batch-axis" else tensors[0]


def from_native(tensor: Tensor, form: Form) -> tuple[Tensor, ...]:
    """Return what a place holds of a native tensor; parts share its memory."""
    if form == "thirds":
        return tensor.chunk(3)
    return (tensor[0],) if form == "no-batch-axis" else (tensor,)


def shapes_in(shape: tuple[int, ...], form: Form) -> tuple[int, ...]:
    """Return the shape of each tensor in the place of a native tensor of `shape`."""
    if form == "thirds":
        return (shape[0] // 3, *shape[1:])
    return shape[1:] if form == "no-batch-axis" else shape


@cache
def _pattern(pattern: str) -> re.Pattern[str]:
    words = {"*": r"([^.]+)", "**": r"(.+)"}
    return re.compile(r"\.".join(words.get(word, re.escape(word)) for word in pattern.split(".")))


def _fill(pattern: str, values: Sequence[str]) -> str:
    left = iter(values)
    return ".".join(next(left) if word in ("*", "**") else word for word in pattern.split("."))
