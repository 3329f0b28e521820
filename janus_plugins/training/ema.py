"""A running average of the weights (EMA), kept where AdamW keeps its moments.

As a state of the optimiser the average is in fp32 at every precision, is cut up between ranks as ZeRO cuts up
the moments, lies in every checkpoint, and is gone on with exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

AVERAGE = "average"
"""The key of the average among a parameter's states."""


class AveragingAdamW(torch.optim.AdamW):
    """AdamW that keeps `average <- decay * average + (1 - decay) * weight` after each step it takes.

    The average begins as the weights before the first step. A step without gradients (one that was
    refused) leaves it alone.
    """

    def __init__(self, params: Iterable[dict[str, Any]], decay: float, **options: Any) -> None:
        super().__init__(params, **options)
        self._decay = decay

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Take one step and move the average towards its outcome."""
        learnt = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        # AdamW makes a parameter's moments only while it has no state at all, so that ours comes after.
        first = {p: p.detach().clone() for p in learnt if AVERAGE not in self.state.get(p, {})}
        answer = super().step(closure)
        for parameter, before in first.items():
            self.state[parameter][AVERAGE] = before
        if learnt:
            averages: list[Tensor] = [self.state[p][AVERAGE] for p in learnt]
            torch._foreach_lerp_(averages, learnt, 1 - self._decay)
        return answer
