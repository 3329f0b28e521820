"""An EEGNet without its classifier: a few features of every window. Source: EEGNet (1611.08024), table 2.

Batch normalisation is replaced by one over each window, since ranks and dummies would move its statistics.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from janus_plugins.encoders.eeg.spec import EegConfig


class EegNet(nn.Module):
    """Turn windows [N, A, C, S] into features [N, A * (S // 32), width], each window by itself."""

    def __init__(self, config: EegConfig) -> None:
        super().__init__()
        first, deep = config.filters, config.filters * 2
        self.time = nn.Conv2d(1, first, (1, config.rate // 2 + 1), padding="same", bias=False)
        self.norm_time = nn.GroupNorm(1, first)
        self.space = nn.Conv2d(first, deep, (len(config.channels), 1), groups=first, bias=False)
        self.norm_space = nn.GroupNorm(1, deep)
        self.depthwise = nn.Conv2d(deep, deep, (1, 17), padding="same", groups=deep, bias=False)
        self.pointwise = nn.Conv2d(deep, config.width, 1, bias=False)
        self.norm_out = nn.GroupNorm(1, config.width)

    def forward(self, signal: Tensor, there: Tensor | None) -> Tensor:
        """Return features [N, A * (S // 32), width] of [N, A, C, S]."""
        count, windows = signal.shape[:2]
        hidden = self.norm_time(self.time(signal.flatten(0, 1)[:, None]))
        hidden = functional.avg_pool2d(functional.elu(self.norm_space(self.space(hidden))), (1, 4))
        hidden = functional.elu(self.norm_out(self.pointwise(self.depthwise(hidden))))
        features = functional.avg_pool2d(hidden, (1, 8)).flatten(2).transpose(1, 2)
        return features.reshape(count, windows * features.shape[1], features.shape[2])
