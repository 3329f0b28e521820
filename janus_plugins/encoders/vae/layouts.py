"""Names of published autoencoders: diffusers' own, those of its first versions, and the original code's.

The original ("LDM") is CompVis/latent-diffusion's `AutoencoderKL`, whose layout MAR's kl16.ckpt has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_ORIGINAL = "encoder.down.0.block.0.norm1.weight"
_BLOCK = re.compile(r"(encoder\.down|decoder\.up)\.(\d+)\.(block|attn)\.(\d+)\.(.+)")
_RESIZE = re.compile(r"(encoder\.down|decoder\.up)\.(\d+)\.(downsample|upsample)\.conv\.(.+)")
_MIDDLE = re.compile(r"(encoder|decoder)\.mid\.(block|attn)_(\d)\.(.+)")
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_EARLY = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_TRAINED_WITH = ("loss.", "model_ema.")
"""Before names of what the original code keeps beside the autoencoder."""


def to_diffusers(tensors: Mapping[str, Tensor], num_levels: int) -> dict[str, Tensor]:
    """Return tensors under the names of diffusers' `AutoencoderKL`.

    Args:
        tensors: of a published file.
        num_levels: levels of the autoencoder; the original counts the decoder's from the other end.
    """
    if _ORIGINAL not in tensors:
        return {_modern(name): tensor for name, tensor in tensors.items()}
    renamed = {}
    for name, tensor in tensors.items():
        if name.startswith(_TRAINED_WITH):
            continue
        attends = ".attn" in name and name.endswith(".weight") and tensor.ndim == 4
        renamed[_from_original(name, num_levels)] = tensor[:, :, 0, 0] if attends else tensor
    return renamed


def _modern(name: str) -> str:
    """Return a name of diffusers' as it is since version 0.16 (arrangements of attention)."""
    path, _, end = name.rpartition(".")
    before, _, layer = path.rpartition(".")
    return f"{before}.{_EARLY[layer]}.{end}" if layer in _EARLY and "attentions" in before else name


def _from_original(name: str, num_levels: int) -> str:
    if match := _BLOCK.fullmatch(name):
        side, level, kind, index, rest = match.groups()
        return f"{_level(side, level, num_levels)}.{_block(kind, index, rest)}"
    if match := _RESIZE.fullmatch(name):
        side, level, kind, rest = match.groups()
        return f"{_level(side, level, num_levels)}.{kind}rs.0.conv.{rest}"
    if match := _MIDDLE.fullmatch(name):
        side, kind, number, rest = match.groups()
        return f"{side}.mid_block.{_block(kind, str(int(number) - 1), rest)}"
    return name.replace(".norm_out.", ".conv_norm_out.")


def _level(side: str, level: str, num_levels: int) -> str:
    if side == "encoder.down":
        return f"encoder.down_blocks.{level}"
    return f"decoder.up_blocks.{num_levels - 1 - int(level)}"


def _block(kind: str, index: str, rest: str) -> str:
    if kind == "block":
        return f"resnets.{index}.{rest.replace('nin_shortcut', 'conv_shortcut')}"
    layer, _, end = rest.partition(".")
    return f"attentions.{index}.{_ATTENTION.get(layer, layer)}.{end}"
