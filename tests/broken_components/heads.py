"""Heads that each break one rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from janus_plugins.core.facts import HeadFacts
from janus_plugins.testing.partner_models import PartnerHead


class Mean(PartnerHead):
    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return super().loss(hidden, targets).mean()


class Half(PartnerHead):
    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return super().loss(hidden, targets).to(self.output.weight.dtype)


class Relative(PartnerHead):
    """Compares each position with its batch mates."""

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return super().loss(hidden - 0.5 * hidden.mean(0), targets)


class Blind(PartnerHead):
    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return super().loss(hidden, torch.zeros_like(targets))


class Dice(PartnerHead):
    """Draws from torch's generator instead of the rows' own streams."""

    def sample(self, hidden: Tensor, unconditional: Tensor | None, **options: Any) -> Tensor:
        shares = self.logits(hidden).softmax(-1)
        return torch.multinomial(shares, 1)[:, 0]


class Beyond(PartnerHead):
    def sample(self, hidden: Tensor, unconditional: Tensor | None, **options: Any) -> Tensor:
        return super().sample(hidden, unconditional, **options) + self.output.out_features


class Mute(PartnerHead):
    logits = None  # type: ignore[assignment]

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        made = self.output(hidden.to(self.output.weight.dtype)).float()
        return nn.functional.cross_entropy(made, targets, reduction="none")

    def sample(self, hidden: Tensor, unconditional: Tensor | None, **options: Any) -> Tensor:
        return self.output(hidden).argmax(-1)


class OneCode(PartnerHead):
    """Forgets that a slot has several codes when it samples."""

    def sample(self, hidden: Tensor, unconditional: Tensor | None, **options: Any) -> Tensor:
        return super().sample(hidden, unconditional, **options)[:, 0]


class EachCode(PartnerHead):
    """Gives a loss for each code instead of one for each position."""

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        made = self.logits(hidden).float().unflatten(-1, (self.codebooks, -1))
        return nn.functional.cross_entropy(made.flatten(0, 1), targets.flatten(), reduction="none")


def __getattr__(name: str) -> Any:
    """Let a spec name a class as its factory: `build_Mean` builds `Mean(facts)`."""
    made = globals().get(name.removeprefix("build_"))
    if made is None:
        raise AttributeError(name)

    def build(config: Any, facts: HeadFacts) -> nn.Module:
        return made(facts)

    return build
