"""Modules that keep their contract."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from janus_plugins import AdapterFacts

from .spec import CODES, LENGTH, TOKENS, WIDTH


class Encoder(nn.Module):
    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.layer = nn.Linear(LENGTH // TOKENS, width)

    def forward(self, items: dict[str, Tensor]) -> Tensor:
        return torch.tanh(self.layer(self.cut(items)))

    def cut(self, items: dict[str, Tensor]) -> Tensor:
        signal = items["signal"].to(self.layer.weight.dtype)
        return signal.view(len(signal), TOKENS, -1)


class Codec(nn.Module):
    def encode(self, items: dict[str, Tensor]) -> Tensor:
        return items["signal"].add(3).mul(CODES / 6).long().clamp(0, CODES - 1)

    def decode(self, codes: Tensor) -> Tensor:
        return codes.float() * (6 / CODES) - 3


class Adapter(nn.Module):
    def __init__(self, facts: AdapterFacts) -> None:
        super().__init__()
        self.layer = nn.Linear(facts.in_width, facts.out_width)

    def forward(self, source: Tensor) -> Tensor:
        return self.layer(source.to(self.layer.weight.dtype))


def build_encoder(config: Any, facts: Any) -> nn.Module:
    return Encoder()


def build_codec(config: Any, facts: Any) -> nn.Module:
    return Codec()


def build_adapter(config: Any, facts: Any) -> nn.Module:
    return Adapter(facts)
