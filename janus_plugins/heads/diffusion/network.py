"""The denoising network: an MLP that is told the time and the condition by adaptive norms.

Source: MAR (arXiv 2406.11838), section 3.2 and `SimpleMLPAdaLN` of its code; the norms are those of DiT
(2212.09748).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

_FREQUENCIES = 256
"""Width of a time's sines and cosines."""
_PERIOD = 10_000.0
_SMALL = 0.02
"""Deviation of weights that start near nothing. MAR starts modulations and output at exactly zero, where the
answer does not hang on the hidden state, and the language model learns nothing from the first step."""


class TimeEmbedding(nn.Module):
    """Embed times [...] as vectors [..., W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        for layer in (self.layers[0], self.layers[2]):
            nn.init.normal_(layer.weight, std=_SMALL)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, times: Tensor, kind: torch.dtype) -> Tensor:
        """Return [..., W] of times [...] (float32, 0 to about 1000)."""
        half = _FREQUENCIES // 2
        steps = torch.arange(half, device=times.device, dtype=torch.float32)
        angles = times.float()[..., None] * torch.exp(-math.log(_PERIOD) / half * steps)
        embedded: Tensor = self.layers(torch.cat((angles.cos(), angles.sin()), -1).to(kind))
        return embedded


class Modulation(nn.Module):
    """Turn what is known into numbers that shift, scale or gate channels, `count` of each."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.linear = nn.Linear(width, count * width)
        nn.init.normal_(self.linear.weight, std=_SMALL)
        nn.init.zeros_(self.linear.bias)

    def forward(self, known: Tensor) -> tuple[Tensor, ...]:
        """Return `count` tensors [..., W] of known [..., W]."""
        return self.linear(functional.silu(known)).chunk(self.count, dim=-1)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Add a modulated MLP to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = Modulation(width, 3)
        for layer in (self.mlp[0], self.mlp[2]):
            _even(layer)  # type: ignore[arg-type]

    def forward(self, x: Tensor, known: Tensor) -> Tensor:
        """Return [..., W] of x [..., W] and what is known [..., W]."""
        shift, scale, gate = self.modulation(known)
        added: Tensor = gate * self.mlp(self.norm(x) * (1 + scale) + shift)
        return x + added


class Denoiser(nn.Module):
    """Answer what the process asks about noisy latents.

    Args:
        size: width of a latent (C).
        outputs: numbers of an answer.
        width: channels (W).
        depth: blocks.
    """

    def __init__(self, size: int, outputs: int, width: int, depth: int) -> None:
        super().__init__()
        self.time = TimeEmbedding(width)
        self.input = nn.Linear(size, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = Modulation(width, 2)
        self.output = nn.Linear(width, outputs)
        _even(self.input)
        nn.init.normal_(self.output.weight, std=_SMALL)
        nn.init.zeros_(self.output.bias)

    def forward(self, noisy: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        """Return answers [..., outputs] (float32).

        Args:
            noisy: latents with noise [..., C] (float32).
            times: of the process [...], or one for all [1] (float32).
            condition: the embedded hidden state [..., W]; broadcast over leading axes.
        """
        known = self.time(times, condition.dtype) + condition
        x = self.input(noisy.to(condition.dtype))
        for block in self.blocks:
            x = block(x, known)
        shift, scale = self.modulation(known)
        answers: Tensor = self.output(self.norm(x) * (1 + scale) + shift)
        return answers.float()


def _even(layer: nn.Linear) -> None:
    """Start a layer as MAR does: Xavier's uniform weights, no bias."""
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
