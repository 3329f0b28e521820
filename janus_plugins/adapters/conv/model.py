"""A strided convolution, GELU, and a linear layer to the language model's width."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from janus_plugins.adapters.conv.spec import ConvConfig
from janus_plugins.core.facts import AdapterFacts
from janus_plugins.core.grids import to_grid
from janus_plugins.core.weights import load_exactly, read_weights


class Conv(nn.Module):
    """Map features [N, T, C] to fewer embeddings [N, T', M]; see `ConvConfig.output_tokens`."""

    def __init__(self, config: ConvConfig, facts: AdapterFacts) -> None:
        super().__init__()
        self.config = config
        hidden = config.width or facts.out_width
        sizes = (facts.in_width, hidden, config.window, config.factor)
        spare = config.window - config.factor
        self.conv = nn.Conv1d(*sizes) if config.dims == 1 else nn.Conv2d(*sizes, padding=spare // 2)
        self.linear = nn.Linear(hidden, facts.out_width)

    def forward(self, source: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return embeddings [N, T', M] of features [N, T, C], of which the first `lengths` [N] count."""
        features = source.to(self.linear.weight.dtype)
        if lengths is not None:
            there = torch.arange(source.shape[1], device=source.device) < lengths[:, None]
            features = torch.where(there[..., None], features, 0)
        down = self._line(features) if self.config.dims == 1 else self._grid(features)
        embeddings: Tensor = self.linear(functional.gelu(down))
        return embeddings

    def _line(self, features: Tensor) -> Tensor:
        """Return windows that reach back from their last feature [N, T // factor, hidden]."""
        config, tokens = self.config, features.shape[1]
        short = max(config.factor - tokens, 0)
        padded = functional.pad(features.transpose(1, 2), (config.window - config.factor, short))
        return self.conv(padded).transpose(1, 2)  # type: ignore[no-any-return]

    def _grid(self, features: Tensor) -> Tensor:
        grid = to_grid(features, self.config.grid, "conv").permute(0, 3, 1, 2)
        down = self.conv(grid).flatten(2).transpose(1, 2)
        return down.reshape(len(features), features.shape[1] // self.config.factor**2, down.shape[2])  # type: ignore[no-any-return]

    def load_weights(self, source: str) -> None:
        """Load weights under this module's own names.

        Raises:
            CheckpointError: nothing there, or keys or shapes that do not fit.
        """
        load_exactly(self, read_weights(source), source)


def build(config: ConvConfig, facts: AdapterFacts) -> Conv:
    """Build the adapter."""
    return Conv(config, facts)
