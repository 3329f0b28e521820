"""What learns, at which rate: parameter groups from a stage's `learn`, and the schedule of the rate.

Weight decay is put on parameters with two or more dimensions (matrices, tables, kernels), not on biases,
norms and other vectors. The papers do not say which they decay.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from janus_plugins.core.schema import Schedule, StageBlock
from janus_plugins.model.learning import check_learn
from janus_plugins.model.lora import under
from janus_plugins.training.ema import AveragingAdamW


@dataclass(frozen=True)
class Learning:
    """Hold what one stage learns.

    Attributes:
        rates: parameter name -> peak learning rate, for every parameter that learns.
        by_pattern: pattern of `learn` -> number of values that it sets.
        frozen: number of values that do not learn.
    """

    rates: dict[str, float]
    by_pattern: dict[str, int]
    frozen: int


def choose_learning(model: nn.Module, stage: StageBlock) -> Learning:
    """Find the rate of every parameter by the longest pattern that begins its name.

    Raises:
        RunFileError: a pattern of `learn` names no parameter.
    """
    check_learn(model, stage)
    rates: dict[str, float] = {}
    by_pattern = dict.fromkeys(stage.learn, 0)
    frozen = 0
    for name, parameter in model.named_parameters():
        matching = [pattern for pattern in stage.learn if under(name, pattern)]
        if not matching:
            frozen += parameter.numel()
            continue
        pattern = max(matching, key=len)
        rates[name] = stage.learn[pattern]
        by_pattern[pattern] += parameter.numel()
    return Learning(rates, by_pattern, frozen)


def set_trainable(model: nn.Module, learning: Learning) -> None:
    """Let the chosen parameters learn and freeze all others."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in learning.rates)


def parameter_groups(model: nn.Module, learning: Learning, weight_decay: float) -> list[dict[str, Any]]:
    """Group the learning parameters by rate and decay, in the order of first appearance."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if name in learning.rates:
            decay = weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((learning.rates[name], decay), []).append(parameter)
    return [
        {"params": members, "lr": rate, "peak": rate, "weight_decay": decay}
        for (rate, decay), members in groups.items()
    ]


def build_optimizer(
    model: nn.Module, stage: StageBlock, learning: Learning, device: torch.device
) -> torch.optim.AdamW:
    """Make torch's AdamW for weights that will be on `device`; DeepSpeed's own would be compiled first."""
    given = stage.optimizer
    groups = parameter_groups(model, learning, given.weight_decay)
    options: dict[str, Any] = {"lr": 0.0, "betas": given.betas, "eps": given.eps}
    if device.type in ("cuda", "cpu"):  # one pass over weights and moments instead of a dozen, and no copies
        options["fused"] = True
    if stage.ema is None:
        return torch.optim.AdamW(groups, **options)
    return AveragingAdamW(groups, stage.ema, **options)


def rate_factor(schedule: Schedule, step: int, steps: int) -> float:
    """Return the share of the peak rate for optimiser step `step` (0-based) of `steps`.

    Warm-up rises linearly from 1/warmup at step 0 to 1 at step warmup - 1. The rest goes from 1 at the first
    step after it to `floor` at the last step.
    """
    if step < schedule.warmup:
        return (step + 1) / schedule.warmup
    if schedule.type == "constant":
        return 1.0
    left = max(steps - 1 - schedule.warmup, 1)
    done = min((step - schedule.warmup) / left, 1.0)
    curve = (1 + math.cos(math.pi * done)) / 2 if schedule.type == "cosine" else 1 - done
    return schedule.floor + (1 - schedule.floor) * curve


def set_rates(groups: Iterable[dict[str, Any]], factor: float) -> list[float]:
    """Set every group's rate to its peak times `factor`; return the rates."""
    rates = []
    for group in groups:
        group["lr"] = group["peak"] * factor
        rates.append(group["lr"])
    return rates


def loss_scales(counts: Mapping[str, int], mean: str) -> dict[str, float]:
    """Return the weight of each path's summed loss, so that the whole is a mean over all ranks.

    Args:
        counts: positions that each path answers for in the whole step, over ranks and micro-batches.
        mean: "token": over all positions alike; "task": each path's own mean, then over the present paths.
    """
    present = {path: count for path, count in counts.items() if count > 0}
    if mean == "token":
        total = sum(present.values())
        return {path: 1 / total if path in present else 0.0 for path in counts}
    return {path: 1 / (present[path] * len(present)) if path in present else 0.0 for path in counts}
