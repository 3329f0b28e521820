"""Understanding encoders and codecs that each break one rule."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from .good import Codec, Encoder
from .spec import CODES, TOKENS, WIDTH


class Mixing(Encoder):
    def forward(self, items: dict[str, Tensor]) -> Tensor:
        features = super().forward(items)
        return features - 0.5 * features.mean(0, keepdim=True)


class Editing(Encoder):
    def forward(self, items: dict[str, Tensor]) -> Tensor:
        items["signal"].sub_(items["signal"].mean(-1, keepdim=True))
        return super().forward(items)


class Unfreezing(Encoder):
    def forward(self, items: dict[str, Tensor]) -> Tensor:
        self.layer.weight.requires_grad_(True)
        return super().forward(items)


class Cut(Encoder):
    def forward(self, items: dict[str, Tensor]) -> Tensor:
        return super().forward(items).detach()


class OnOneRank(Encoder):
    def forward(self, items: dict[str, Tensor]) -> Tensor:
        if os.environ.get("RANK") == "1":
            raise LookupError("no such thing")
        return super().forward(items)


class Waiting(Encoder):
    """Waits on one rank for what the other never sends."""

    def forward(self, items: dict[str, Tensor]) -> Tensor:
        if os.environ.get("RANK") == "0":
            torch.distributed.barrier()
        return super().forward(items)


class Unused(Encoder):
    def __init__(self) -> None:
        super().__init__()
        self.pooler = nn.Linear(WIDTH, WIDTH)


class Dividing(Encoder):
    def cut(self, items: dict[str, Tensor]) -> Tensor:
        signal = items["signal"].to(self.layer.weight.dtype)
        return super().cut({"signal": signal / signal.norm(dim=-1, keepdim=True)})


class RootOfZero(Encoder):
    """Finite for a dummy of zeros, and its gradient is not: 0 times infinity."""

    def forward(self, items: dict[str, Tensor]) -> Tensor:
        energy = (self.cut(items).abs() * self.layer.weight.sum().abs()).sqrt()
        return super().forward(items) + energy.mean((1, 2), keepdim=True)


class Numbered(Encoder):
    """Adds numbers that are made on the CPU, wherever the features are."""

    def forward(self, items: dict[str, Tensor]) -> Tensor:
        features = super().forward(items)
        return features + 0.1 * torch.arange(features.shape[-1]).to(features.dtype)


class Skipping(Encoder):
    """Runs nothing where there seems to be nothing to run, so that ranks fall out of step."""

    def forward(self, items: dict[str, Tensor]) -> Tensor:
        if not items["signal"].any():
            return torch.zeros(len(items["signal"]), TOKENS, WIDTH, dtype=self.layer.weight.dtype)
        return super().forward(items)


class FullPrecision(Encoder):
    def forward(self, items: dict[str, Tensor]) -> Tensor:
        return super().forward(items).float()


class Hidden(Encoder):
    """Keeps random weights where no state dict sees them."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = torch.randn(WIDTH)

    def forward(self, items: dict[str, Tensor]) -> Tensor:
        return super().forward(items) + self.shift.to(self.layer.weight.dtype)


class Unsaveable(Encoder):
    """Puts into its state dict what no safetensors file can hold."""

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 2}

    def set_extra_state(self, state: Any) -> None:
        pass


class Doubling(Encoder):
    """Computes in float64, whatever it was cast to."""

    def forward(self, items: dict[str, Tensor]) -> Tensor:
        return super().forward(items).double()


class HalfCut(Encoder):
    """Detaches the one layer that a gradient must pass."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(WIDTH, WIDTH)

    def forward(self, items: dict[str, Tensor]) -> Tensor:
        return self.last(super().forward(items).detach())


class Constant(Encoder):
    def forward(self, items: dict[str, Tensor]) -> Tensor:
        return super().forward({"signal": torch.ones_like(items["signal"])})


class Random(Encoder):
    def forward(self, items: dict[str, Tensor]) -> Tensor:
        features = super().forward(items)
        return features + torch.rand_like(features)


class OutOfRange(Codec):
    def encode(self, items: dict[str, Tensor]) -> Tensor:
        return items["signal"].add(3).mul(CODES / 6).long().clamp(0, CODES)


class Floats(Codec):
    def encode(self, items: dict[str, Tensor]) -> Tensor:
        return super().encode(items).float()


class Dicing(Codec):
    """Draws codes anew each time, so that targets change from step to step."""

    def encode(self, items: dict[str, Tensor]) -> Tensor:
        return torch.randint_like(super().encode(items), CODES)


class Negative(Codec):
    def encode(self, items: dict[str, Tensor]) -> Tensor:
        return super().encode(items) - 1


class Short(Codec):
    def encode(self, items: dict[str, Tensor]) -> Tensor:
        return super().encode(items)[:, 1:]


def wide(config: Any, facts: Any) -> nn.Module:
    return Encoder(WIDTH + 1)


def no_module(config: Any, facts: Any) -> Any:
    return (config, facts)


def on_the_cpu(config: Any, facts: Any) -> nn.Module:
    encoder = Encoder()
    encoder.layer.weight = nn.Parameter(torch.zeros(WIDTH, 4, device="cpu").normal_())
    return encoder


def __getattr__(name: str) -> Any:
    """Let a spec name a class as its factory: `build_Mixing` builds `Mixing()`."""
    made = globals().get(name.removeprefix("build_"))
    if made is None:
        raise AttributeError(name)
    return lambda config, facts: made()
