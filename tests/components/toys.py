"""Small components and the plans they are run with."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from janus_plugins.core.contracts import Packed
from janus_plugins.core.facts import LanguageModelFacts
from janus_plugins.heads.text.model import TextHead
from janus_plugins.heads.text.spec import TextConfig
from janus_plugins.language_models.model import CausalLanguageModel, build
from janus_plugins.language_models.spec import LlamaConfig

SIZES = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 4}


def text_head(facts: LanguageModelFacts, **options: object) -> TextHead:
    config = TextConfig(**options)
    return TextHead(config, config.facts(None, facts))


def tiny_llama(seed: int = 0, **options: object) -> CausalLanguageModel:
    """A Llama whose weights are large enough that a leak would show."""
    torch.manual_seed(seed)
    config = LlamaConfig(**{**SIZES, "init_std": 0.2, **options})
    model = build(config, config.facts())
    model.attach_text_head(text_head(config.facts()))
    return model.eval()


def packed_rows(lengths: list[list[int]], slots: int) -> tuple[Packed, Tensor]:
    """Plan rows of segments by hand: (plan, positions [R, slots])."""
    starts: dict[int, list[Tensor]] = {}
    bounds = [0]
    positions = torch.zeros(len(lengths), slots, dtype=torch.int64)
    for row, segments in enumerate(lengths):
        at = 0
        for length in segments:
            flat = row * slots + at
            starts.setdefault(length, []).append(torch.arange(flat, flat + length))
            positions[row, at : at + length] = torch.arange(length)
            at += length
            bounds.append(row * slots + at)
        if at < slots:
            bounds.append((row + 1) * slots)
    sizes = [after - before for before, after in itertools.pairwise(bounds)]
    groups = tuple(torch.stack(each) for each in starts.values())
    return Packed(groups, torch.tensor(bounds, dtype=torch.int32), max(sizes)), positions


def alone(length: int) -> tuple[Packed, Tensor]:
    """Plan one sample by itself."""
    return packed_rows([[length]], length)


class FixedDraws:
    """Give the same numbers each time."""

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers

    def uniform(self) -> Tensor:
        return self.numbers

    def normal(self, *shape: int) -> Tensor:
        return torch.zeros(len(self.numbers), *shape)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: each.grad.clone() for name, each in module.named_parameters() if each.grad is not None}
