"""Which layers a stage adapts with low-rank updates (LoRA, Hu et al. 2021, arXiv 2106.09685).

Knows names and shapes alone; `training/lora.py` puts the updates in and merges them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from janus_plugins.core.errors import RunFileError
from janus_plugins.core.schema import Lora, StageBlock
from janus_plugins.core.suggest import nearest


def lora_layers(model: nn.Module, stage: StageBlock) -> dict[str, str]:
    """Return the layers that a stage adapts: name -> the longest pattern of `lora` that it lies under.

    Plain `nn.Linear` layers only. A subclass may compute more than a product (the output layers of heads
    compute losses), and adding an update to what it returns would be wrong.

    Raises:
        RunFileError: a pattern or a target names no such layer, or a layer would also learn in full.
    """
    patterns = stage.lora or {}
    linear = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    layers: dict[str, str] = {}
    for pattern in sorted(patterns, key=len):  # longer ones overrule shorter ones
        layers.update(dict.fromkeys(_chosen(model, linear, stage, pattern), pattern))
    _refuse_twice(model, stage, layers)
    return layers


def lora_counts(model: nn.Module, stage: StageBlock) -> dict[str, int]:
    """Return the values that low-rank updates add, by layer."""
    counts: dict[str, int] = {}
    for name, pattern in lora_layers(model, stage).items():
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        counts[name] = (stage.lora or {})[pattern].r * (layer.in_features + layer.out_features)
    return counts


def under(name: str, pattern: str) -> bool:
    """Answer whether a dotted name is `pattern` or lies in it."""
    return name == pattern or name.startswith(pattern + ".")


def _chosen(model: nn.Module, linear: Iterable[str], stage: StageBlock, pattern: str) -> Iterator[str]:
    block: Lora = (stage.lora or {})[pattern]
    place = f"stages.{stage.name}.lora.{pattern}"
    inside = [name for name in linear if under(name, pattern)]
    if not inside:
        known = [name for name, _ in model.named_modules() if name]
        why = (
            "it has no plain linear layer, and LoRA adapts no other; learn it in full under 'learn'"
            if pattern in known
            else f"the model has no such module.{nearest(pattern, known)}"
        )
        raise RunFileError(f"{place}: {why}")
    if block.targets is None:
        yield from inside
        return
    for target in block.targets:
        ending = [name for name in inside if name == target or name.endswith("." + target)]
        if not ending:
            leaves = sorted({name.rpartition(".")[2] for name in inside})
            raise RunFileError(f"{place}.targets: no linear layer ends in {target!r}; there are {leaves}")
        yield from ending


def _refuse_twice(model: nn.Module, stage: StageBlock, layers: dict[str, str]) -> None:
    for name, pattern in layers.items():
        fully = [prefix for prefix in stage.learn if under(name, prefix) or under(prefix, name)]
        if fully:
            raise RunFileError(
                f"stages.{stage.name}: {name} would learn in full (learn: {fully[0]}) and by LoRA "
                f"(lora: {pattern}); narrow one of them"
            )
