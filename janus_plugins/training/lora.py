"""Low-rank updates in training: put into a model through peft, merged into plain weights at a stage's end.

Nothing outside a stage knows of them: what a stage leaves is a model of the usual names and shapes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from janus_plugins.core.errors import PluginError
from janus_plugins.core.schema import StageBlock
from janus_plugins.model.lora import lora_counts, lora_layers
from janus_plugins.training.optim import Learning

_ADAPTER = "lora"
"""The name that peft gives the updates of every layer."""


@dataclass(frozen=True)
class Updates:
    """Hold what was put into a model.

    Attributes:
        scales: name of each adapted layer -> what its update is multiplied by.
    """

    scales: dict[str, float] = field(default_factory=dict)


def check_lora(model: nn.Module, stage: StageBlock) -> None:
    """Find out early whether a stage's LoRA can be had.

    Raises:
        RunFileError: it names no layer, or one that learns in full.
        PluginError: peft is not installed.
    """
    if lora_layers(model, stage):
        _peft()


def add_updates(
    model: nn.Module, stage: StageBlock, learning: Learning, seed: int
) -> tuple[Updates, Learning]:
    """Put a stage's low-rank updates into a model; they begin as zero, so that it computes the same.

    Args:
        model: changed in place; an adapted layer's weight then lies at `LAYER.base_layer.weight`.
        stage: whose `lora` it is.
        learning: what learns in full.
        seed: of the random half of each update; the same on every rank.

    Returns:
        What was put in, and `learning` with the updates' rates.

    Raises:
        RunFileError, PluginError: as `check_lora`.
    """
    layers, blocks = lora_layers(model, stage), stage.lora or {}
    if not layers:
        return Updates(), learning
    peft = _peft()
    counts = lora_counts(model, stage)
    by_pattern, rates = dict(learning.by_pattern), dict(learning.rates)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for pattern, block in blocks.items():
            names = [name for name, chosen in layers.items() if chosen == pattern]
            if not names:  # longer patterns cover it
                continue
            config = peft.LoraConfig(
                r=block.r,
                lora_alpha=block.scale * block.r,
                lora_dropout=block.dropout,
                target_modules=names,
            )
            peft.inject_adapter_in_model(config, model, adapter_name=_ADAPTER)
            del model.peft_config  # peft's note to itself; it would warn of the next pattern
            by_pattern[lora_label(pattern)] = sum(counts[name] for name in names)
            rates.update({half: block.rate for name in names for half in _halves(name)})
    scales = {name: blocks[pattern].scale for name, pattern in layers.items()}
    return Updates(scales), Learning(rates, by_pattern, learning.frozen)


def merge_updates(state: dict[str, Tensor], updates: Updates) -> dict[str, Tensor]:
    """Return a model's full weights under their plain names, each update added to its weight.

    Args:
        state: fp32 weights by name, the updates among them; empty on other ranks than the main one.
        updates: what `add_updates` answered.
    """
    if not state or not updates.scales:
        return state
    merged = dict(state)
    for name, scale in updates.scales.items():
        down, up = (merged.pop(half) for half in _halves(name))
        weight = merged.pop(f"{name}.base_layer.weight")
        merged[f"{name}.weight"] = (weight.float() + up.float() @ down.float() * scale).to(weight.dtype)
        bias = merged.pop(f"{name}.base_layer.bias", None)
        if bias is not None:
            merged[f"{name}.bias"] = bias
    return merged


def lora_label(pattern: str) -> str:
    """Return what a pattern of `lora` is called in lists of what learns."""
    return f"{pattern} (LoRA)"


def _halves(layer: str) -> tuple[str, str]:
    """Return the parameter names of a layer's update: A [r, in] and B [out, r]."""
    return f"{layer}.lora_A.{_ADAPTER}.weight", f"{layer}.lora_B.{_ADAPTER}.weight"


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise PluginError(
            f"a stage with 'lora' needs peft, which cannot be imported ({error}); "
            "next: pip install 'janus-plugins[lora]'"
        ) from error
    return peft
