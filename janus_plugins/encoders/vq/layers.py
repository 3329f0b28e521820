"""Encoder and decoder of the VQ tokenizer. Source: LlamaGen, `tokenizer/tokenizer_image/vq_model.py`.

Module names follow the official checkpoints, which therefore load by name.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from janus_plugins.encoders.vq.spec import VqConfig


class ResBlock(nn.Module):
    """Add two normalised convolutions to the input [N, C, H, W]."""

    def __init__(self, width_in: int, width_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width_in, eps=1e-6)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, width_out, eps=1e-6)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else None

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, width_out, H, W]."""
        hidden = self.conv1(functional.silu(self.norm1(x)))
        hidden = self.conv2(functional.silu(self.norm2(hidden)))
        kept: Tensor = x if self.nin_shortcut is None else self.nin_shortcut(x)
        added: Tensor = kept + hidden
        return added


class AttnBlock(nn.Module):
    """Add single-head attention over all places to the input [N, C, H, W]."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, C, H, W]."""
        normed = self.norm(x)
        query, key, value = (each(normed).flatten(2).transpose(1, 2) for each in (self.q, self.k, self.v))
        seen = functional.scaled_dot_product_attention(query, key, value)
        mixed: Tensor = self.proj_out(seen.transpose(1, 2).reshape(x.shape))
        return x + mixed


class Downsample(nn.Module):
    """Halve height and width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, C, H / 2, W / 2]; padded at the right and at the bottom only."""
        halved: Tensor = self.conv(functional.pad(x, (0, 1, 0, 1)))
        return halved


class Upsample(nn.Module):
    """Double height and width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, C, 2 H, 2 W]."""
        doubled: Tensor = self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return doubled


class Level(nn.Module):
    """Run the blocks of one resolution; attention only at the lowest."""

    def __init__(self, widths: tuple[int, int], blocks: int, groups: int, attend: bool) -> None:
        super().__init__()
        before, after = widths
        self.res = nn.ModuleList(
            ResBlock(before if index == 0 else after, after, groups) for index in range(blocks)
        )
        self.attn = nn.ModuleList(AttnBlock(after, groups) for _ in range(blocks if attend else 0))
        self.downsample: Downsample | None = None
        self.upsample: Upsample | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, width_out, H', W']."""
        for index, block in enumerate(self.res):
            x = block(x)
            if len(self.attn):
                x = self.attn[index](x)
        for resize in (self.downsample, self.upsample):
            if resize is not None:
                x = resize(x)
        return x


def _middle(width: int, groups: int) -> nn.ModuleList:
    return nn.ModuleList(
        [ResBlock(width, width, groups), AttnBlock(width, groups), ResBlock(width, width, groups)]
    )


class Encoder(nn.Module):
    """Turn pictures [N, in_channels, S, S] into [N, z_channels, side, side]."""

    def __init__(self, config: VqConfig) -> None:
        super().__init__()
        groups, last = config.norm_groups, len(config.multipliers) - 1
        widths = [config.channels, *(config.channels * each for each in config.multipliers)]
        self.conv_in = nn.Conv2d(config.in_channels, config.channels, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        for index in range(last + 1):
            pair = (widths[index], widths[index + 1])
            level = Level(pair, config.num_res_blocks, groups, attend=index == last)
            level.downsample = Downsample(pair[1]) if index != last else None
            self.conv_blocks.append(level)
        self.mid = _middle(widths[-1], groups)
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, z_channels, side, side]."""
        x = self.conv_in(x)
        for block in (*self.conv_blocks, *self.mid):
            x = block(x)
        x = self.conv_out(functional.silu(self.norm_out(x)))
        return x


class Decoder(nn.Module):
    """Turn [N, z_channels, side, side] into pictures [N, in_channels, S, S]; lowest level first."""

    def __init__(self, config: VqConfig) -> None:
        super().__init__()
        groups, last = config.norm_groups, len(config.multipliers) - 1
        widths = [config.channels * each for each in reversed(config.multipliers)]
        self.conv_in = nn.Conv2d(config.z_channels, widths[0], 3, padding=1)
        self.mid = _middle(widths[0], groups)
        self.conv_blocks = nn.ModuleList()
        for index in range(last + 1):
            pair = (widths[max(index - 1, 0)], widths[index])
            level = Level(pair, config.num_res_blocks + 1, groups, attend=index == 0)
            level.upsample = Upsample(pair[1]) if index != last else None
            self.conv_blocks.append(level)
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], config.in_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return pictures [N, in_channels, S, S] in about [-1, 1]."""
        x = self.conv_in(x)
        for block in (*self.mid, *self.conv_blocks):
            x = block(x)
        x = self.conv_out(functional.silu(self.norm_out(x)))
        return x
