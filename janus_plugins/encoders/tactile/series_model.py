"""A transformer over patches of time, for readings of different lengths."""

from __future__ import annotations

import math

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional

from janus_plugins.core.facts import UnderstandingFacts
from janus_plugins.core.weights import load_exactly, read_weights
from janus_plugins.encoders.tactile.series_spec import TactileSeriesConfig


class SeriesEncoder(nn.Module):
    """Turn readings [N, times, channels] into features [N, T, width]; zero behind each series' last."""

    def __init__(self, config: TactileSeriesConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.embed = nn.Linear(config.patch * config.channels, width)
        self.blocks = nn.ModuleList(
            Block(width, config.num_heads, config.mlp_ratio, qkv_bias=True) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, items: dict[str, Tensor]) -> Tensor:
        """Return features [N, T, width] of {"readings"}, and of "readings_lengths" where they vary."""
        readings, patch = items["readings"].to(self.embed.weight.dtype), self.config.patch
        count, steps, channels = readings.shape
        tokens = self.config.num_features(steps)
        padded = functional.pad(readings, (0, 0, 0, tokens * patch - steps))
        hidden = self.embed(padded.reshape(count, tokens, patch * channels))
        hidden = hidden + sinusoids(tokens, hidden.shape[2], hidden.device).to(hidden.dtype)
        lengths = items.get("readings_lengths")
        there = None
        if lengths is not None:
            starts = torch.arange(tokens, device=hidden.device) * patch
            there = starts < lengths.to(hidden.device)[:, None]
        for block in self.blocks:
            hidden = block(hidden, attn_mask=None if there is None else there[:, None, None])
        features: Tensor = self.norm(hidden)
        return features if there is None else features * there[..., None]

    def load_weights(self, source: str) -> None:
        """Load weights under this module's own names.

        Raises:
            CheckpointError: nothing there, or keys or shapes that do not fit.
        """
        load_exactly(self, read_weights(source), source)


def sinusoids(length: int, width: int, device: torch.device) -> Tensor:
    """Return fixed positions [length, width] (float32). Source: Attention Is All You Need, section 3.5."""
    place = torch.arange(length, device=device)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10000.0) / width))
    return torch.cat([(place * rate).sin(), (place * rate).cos()], dim=1)


def build(config: TactileSeriesConfig, facts: UnderstandingFacts) -> SeriesEncoder:
    """Build the encoder with random weights."""
    return SeriesEncoder(config)
