"""Names of InternViT's weights in the files of timm and of OpenGVLab, as transformers calls them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_PREFIXES = ("model.vision_tower.", "vision_tower.", "vision_model.")
"""Before the vision model's names in files of a whole InternVL (transformers, older ones, OpenGVLab)."""

_TOP = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "embeddings.class_embedding": "embeddings.cls_token",
    "embeddings.position_embedding": "embeddings.position_embeddings",
}
_STEMS = {
    "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
    "embeddings.patch_embedding.": "embeddings.patch_embeddings.projection.",
}
_IN_BLOCK = {
    "norm1.": "layernorm_before.",
    "norm2.": "layernorm_after.",
    "attn.proj.": "attention.projection_layer.",
    "attn.q_norm.": "attention.q_norm.",
    "attn.k_norm.": "attention.k_norm.",
    "mlp.": "mlp.",
}
_SCALES = {"ls1": "lambda_1", "ls2": "lambda_2", "ls1.gamma": "lambda_1", "ls2.gamma": "lambda_2"}
_BLOCK = re.compile(r"(?:blocks|encoder\.layers)\.(\d+)\.(.+)")


def to_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the vision model's tensors under transformers' names; what is of no known layout stays.

    Args:
        tensors: of a vision model alone, or of a whole InternVL, whose other parts are left out.
    """
    for prefix in _PREFIXES:
        if any(name.startswith(prefix) for name in tensors):
            tensors = {
                name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)
            }
            break
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        renamed.update(_renamed(name, tensor))
    return renamed


def _renamed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    if name in _TOP:
        return {_TOP[name]: tensor}
    for theirs, ours in _STEMS.items():
        if name.startswith(theirs):
            return {ours + name.removeprefix(theirs): tensor}
    match = _BLOCK.fullmatch(name)
    if match is None:
        return {name: tensor}
    block, rest = f"encoder.layer.{match[1]}.", match[2]
    if rest.startswith("attn.qkv."):
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{block}attention.{letter}_proj.{rest[9:]}": part.clone() for letter, part in parts}
    if rest in _SCALES:
        return {block + _SCALES[rest]: tensor}
    for theirs, ours in _IN_BLOCK.items():
        if rest.startswith(theirs):
            return {block + ours + rest.removeprefix(theirs): tensor}
    return {name: tensor}
