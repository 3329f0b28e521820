"""A model's full weights, whatever DeepSpeed has made of them: out of an engine, and into a fresh model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from janus_plugins.model.empty import Filler
from janus_plugins.training.ema import AVERAGE
from janus_plugins.training.engine import Engine
from janus_plugins.training.optim import Learning
from janus_plugins.training.world import World

Kept = dict[str, Tensor | None]
"""Frozen weights by name, on the main rank; the same names with None on the others."""


def keep_frozen(model: nn.Module, learning: Learning, world: World, precision: str) -> Kept:
    """Keep the frozen weights that a lower precision would round."""
    if precision == "fp32":
        return {}
    frozen = frozen_weights(model, learning)
    return {name: value.clone() if world.is_main else None for name, value in frozen.items()}


def frozen_weights(model: nn.Module, learning: Learning) -> dict[str, Tensor]:
    """Return the parameters that do not learn, by name."""
    return {name: value.detach() for name, value in model.named_parameters() if name not in learning.rates}


def begun_weights(model: nn.Module, learning: Learning) -> dict[str, Tensor]:
    """Return what a model's checkpoint holds and a stage does not learn by gradient, by name."""
    return {name: value for name, value in model.state_dict().items() if name not in learning.rates}


def full_weights(engine: Engine, world: World, kept: Kept, averaged: bool = False) -> dict[str, Tensor]:
    """Return every parameter and buffer of an engine on the CPU of the main rank; elsewhere nothing.

    Learnt parameters come from the optimiser's fp32 copy. Collective under ZeRO, one parameter at a time.

    Args:
        engine: the stage's engine.
        world: who we are.
        kept: what to take for frozen parameters instead of the engine's rounded ones.
        averaged: take the running average of learnt parameters, in a stage that keeps one.
    """
    state: dict[str, Tensor] = {}
    masters = _unpartitioned_masters(engine)
    if averaged:
        _link_states(engine)
    for name, parameter in engine.module.named_parameters():
        value = _average(engine, parameter, masters) if averaged and parameter.requires_grad else None
        if value is None:
            value = kept[name] if name in kept else _full(parameter, masters)
        if value is not None and world.is_main:
            state[name] = value.detach().to("cpu", copy=True)
    if world.is_main:
        state.update(
            {name: value.detach().to("cpu", copy=True) for name, value in engine.module.named_buffers()}
        )
    return state


def _full(parameter: nn.Parameter, masters: dict[int, Tensor]) -> Tensor:
    import deepspeed

    if parameter.requires_grad:
        if id(parameter) in masters:
            return masters[id(parameter)]
        master = deepspeed.utils.safe_get_full_fp32_param(parameter)
        if master is not None:
            return master  # type: ignore[no-any-return]
    if not hasattr(parameter, "ds_id"):
        return parameter
    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()


def _link_states(engine: Engine) -> None:
    """Let parameters find their optimiser states under ZeRO 1 and 2.

    DeepSpeed 0.19 links them after stepping the first group of parameters, whose mates have no state yet.
    """
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    if engine.deepspeed.zero_optimization_stage() not in (1, 2):
        return
    zero, states = engine.deepspeed.optimizer, engine.optimizer.state
    for members, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
        if flat in states:
            lazy_init_hp_params_optimizer_state(members, flat, states)


def _average(engine: Engine, parameter: nn.Parameter, masters: dict[int, Tensor]) -> Tensor | None:
    """Return a learnt parameter's running average; None before the first step."""
    import deepspeed

    if not any(AVERAGE in state for state in engine.optimizer.state.values()):
        return None
    if engine.deepspeed.zero_optimization_stage() > 0:
        return deepspeed.utils.safe_get_full_optimizer_state(parameter, AVERAGE)  # type: ignore[no-any-return]
    average: Tensor | None = engine.optimizer.state[masters.get(id(parameter), parameter)].get(AVERAGE)
    return average


def _unpartitioned_masters(engine: Engine) -> dict[int, Tensor]:
    """Map parameters to their fp32 copies under ZeRO 0 in bf16, whose optimiser has no accessor for them."""
    optimizer = engine.deepspeed.optimizer
    lower, full = getattr(optimizer, "fp16_groups", None), getattr(optimizer, "fp32_groups", None)
    if engine.deepspeed.zero_optimization_stage() != 0 or not lower or not full:
        return {}
    pairs = [
        pair for mine, theirs in zip(lower, full, strict=True) for pair in zip(mine, theirs, strict=True)
    ]
    return {id(parameter): master for parameter, master in pairs}


def load_weights(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Give a freshly built model its weights by name (tied names follow their first).

    An empty parameter (on the meta device) becomes the given tensor itself.
    """
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    filler = Filler(model)
    with torch.no_grad():
        for name, value in state.items():
            if own[name].is_meta:
                filler.put(name, value)
            else:
                own[name].copy_(value)
