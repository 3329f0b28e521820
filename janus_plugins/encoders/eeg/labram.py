"""LaBraM's encoder: a feature of every channel of every window. Source: LaBraM (2405.18765), section 2.

Written anew; names follow the published weights but for the scales of a block (see `load_weights`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional

from janus_plugins.encoders.eeg.electrodes import PLACES, plain
from janus_plugins.encoders.eeg.spec import EegConfig

_GROUPS = 4


class PaddedGroupNorm(nn.GroupNorm):
    """Normalise groups of channels over all patches of an item that are there."""

    def forward(self, x: Tensor, there: Tensor | None = None) -> Tensor:
        """Return [N, C, P, S]; `there` bool [N, P] says which patches count."""
        if there is None:
            return super().forward(x)
        count, channels, patches, steps = x.shape
        grouped = x.float().reshape(count, self.num_groups, channels // self.num_groups, patches, steps)
        weight = there[:, None, None, :, None].float()
        size = weight.sum((2, 3, 4), keepdim=True) * grouped.shape[2] * steps
        mean = (grouped * weight).sum((2, 3, 4), keepdim=True) / size
        variance = ((grouped - mean).square() * weight).sum((2, 3, 4), keepdim=True) / size
        normed = ((grouped - mean) * (variance + self.eps).rsqrt()).reshape(x.shape).to(x.dtype)
        return normed * self.weight[:, None, None] + self.bias[:, None, None]


class TemporalConv(nn.Module):
    """Turn patches of samples [N, P, S] into vectors [N, P, width]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, (1, 15), stride=(1, 8), padding=(0, 7))
        self.norm1 = PaddedGroupNorm(_GROUPS, channels)
        self.conv2 = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1))
        self.norm2 = PaddedGroupNorm(_GROUPS, channels)
        self.conv3 = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1))
        self.norm3 = PaddedGroupNorm(_GROUPS, channels)

    def forward(self, patches: Tensor, there: Tensor | None) -> Tensor:
        """Return vectors [N, P, width]; `there` bool [N, P] says which patches count."""
        hidden = functional.gelu(self.norm1(self.conv1(patches[:, None]), there))
        hidden = functional.gelu(self.norm2(self.conv2(hidden), there))
        hidden = functional.gelu(self.norm3(self.conv3(hidden), there))
        return hidden.permute(0, 2, 3, 1).flatten(2)


class Labram(nn.Module):
    """Turn windows [N, A, C, S] into features [N, A * C, width], window by window."""

    def __init__(self, config: EegConfig) -> None:
        super().__init__()
        width = config.width
        normed: Any = partial(nn.LayerNorm, eps=1e-6)
        self.places = [1 + PLACES.index(plain(name)) for name in config.channels]
        self.patch_embed = TemporalConv(width // config.steps)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + len(PLACES), width) * 0.02)
        self.time_embed = nn.Parameter(torch.randn(1, config.max_windows, width) * 0.02)
        self.blocks = nn.ModuleList(
            Block(
                width,
                config.num_heads,
                config.mlp_ratio,
                qk_norm=True,
                init_values=0.1,
                norm_layer=normed,
            )
            for _ in range(config.depth)
        )
        self.norm = normed(width)

    def forward(self, signal: Tensor, there: Tensor | None) -> Tensor:
        """Return features [N, A * C, width] of [N, A, C, S]; `there` bool [N, A]: windows that count."""
        count, windows, channels, _ = signal.shape
        if there is not None:
            there = there.repeat_interleave(channels, dim=1)
        hidden = self.patch_embed(signal.flatten(1, 2), there)
        places = self.pos_embed[:, self.places].repeat(1, windows, 1)
        times = self.time_embed[:, :windows].repeat_interleave(channels, dim=1)
        first = (self.cls_token + self.pos_embed[:, :1]).expand(count, -1, -1)
        hidden = torch.cat([first, hidden + places + times], dim=1)
        seen = None if there is None else functional.pad(there, (1, 0), value=True)[:, None, None]
        for block in self.blocks:
            hidden = block(hidden, attn_mask=seen)
        features: Tensor = self.norm(hidden)
        return features[:, 1:]
