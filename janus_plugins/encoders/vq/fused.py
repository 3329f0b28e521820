"""The encoder's forward pass on a GPU, without a graph: its layers, what lies between them in kernels."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from janus_plugins.core.devices import launches_triton
from janus_plugins.encoders.vq.layers import Encoder, ResBlock


def fits(encoder: Encoder, pixels: Tensor) -> bool:
    """Answer whether the kernels serve an encoder, where its pictures are."""
    if not launches_triton(pixels.device):
        return False
    norms = [module for module in encoder.modules() if isinstance(module, nn.GroupNorm)]
    return all(_is_power_of_2(norm.num_channels) and _is_power_of_2(norm.num_groups) for norm in norms)


@functools.cache
def kernels() -> Any:
    """Return the module of kernels."""
    from janus_plugins.encoders.vq import kernels

    return kernels


@torch.no_grad()
def encode(encoder: Any, pixels: Tensor) -> Tensor:
    """Return what an `Encoder` returns of pictures [N, C, S, S]; rounding differs."""
    x = _whole(encoder.conv_in, pixels.contiguous(memory_format=torch.channels_last))
    for level in encoder.conv_blocks:
        for index, block in enumerate(level.res):
            x = _block(block, x)
            if len(level.attn):
                x = _channels_last(level.attn[index](x))
        if level.downsample is not None:
            x = _whole(level.downsample.conv, pad(x, (0, 1, 0, 1)))
    first, attention, second = encoder.mid
    x = _block(second, _channels_last(attention(_block(first, x))))
    return _whole(encoder.conv_out, _normed(encoder.norm_out, x, None))


def _block(block: ResBlock, x: Tensor) -> Tensor:
    hidden = _conv(block.conv1, _normed(block.norm1, x, None))
    hidden = _conv(block.conv2, _normed(block.norm2, hidden, block.conv1.bias))
    kept = x
    if block.nin_shortcut is not None:
        kept = _whole(block.nin_shortcut, x)
    answer: Tensor = kernels().added(hidden, block.conv2.bias, kept)
    return answer


def _conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Return the convolution without its bias."""
    return _channels_last(conv2d(x, layer.weight, None, layer.stride, layer.padding))


def _whole(layer: nn.Conv2d, x: Tensor) -> Tensor:
    answer: Tensor = kernels().added(_conv(layer, x), layer.bias)
    return answer


def _normed(norm: nn.GroupNorm, x: Tensor, bias: Tensor | None) -> Tensor:
    answer: Tensor = kernels().normed(x, bias, norm.weight, norm.bias, norm.num_groups, norm.eps)
    return answer


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _is_power_of_2(number: int) -> bool:
    return number & (number - 1) == 0
