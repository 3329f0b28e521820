"""Adapters that each break one rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from janus_plugins import AdapterFacts

from .good import Adapter


class Averaging(Adapter):
    """Adds the mean of an item's features, and counts what pads it."""

    def forward(self, source: Tensor) -> Tensor:
        return super().forward(source + source.mean(1, keepdim=True))


class Clipping(Adapter):
    def forward(self, source: Tensor) -> Tensor:
        return super().forward(source.clamp_(-1, 1))


class Leaking(Adapter):
    """Trains the features below it by a gradient that is not there: it passes none on."""

    def forward(self, source: Tensor) -> Tensor:
        return super().forward(source.detach())


class Normalising(Adapter):
    def __init__(self, facts: AdapterFacts) -> None:
        super().__init__(facts)
        self.norm = nn.BatchNorm1d(facts.out_width, track_running_stats=False)

    def forward(self, source: Tensor) -> Tensor:
        return self.norm(super().forward(source).transpose(1, 2)).transpose(1, 2)


class Pooling(Adapter):
    def forward(self, source: Tensor) -> Tensor:
        return super().forward(source)[:, ::2]


class Upcasting(Adapter):
    def forward(self, source: Tensor) -> Tensor:
        return super().forward(source).float()


def build_upcasting(config: Any, facts: AdapterFacts) -> nn.Module:
    return Upcasting(facts)


def build_averaging(config: Any, facts: AdapterFacts) -> nn.Module:
    return Averaging(facts)


def build_clipping(config: Any, facts: AdapterFacts) -> nn.Module:
    return Clipping(facts)


def build_leaking(config: Any, facts: AdapterFacts) -> nn.Module:
    return Leaking(facts)


def build_normalising(config: Any, facts: AdapterFacts) -> nn.Module:
    return Normalising(facts)


def build_pooling(config: Any, facts: AdapterFacts) -> nn.Module:
    return Pooling(facts)


def build_still(config: Any, facts: AdapterFacts) -> nn.Module:
    adapter = Adapter(facts)
    torch.nn.init.zeros_(adapter.layer.weight)
    return adapter
