"""Which parameters the patterns under a stage's `learn` name. Knows names alone."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from torch import nn

from janus_plugins.core.errors import RunFileError
from janus_plugins.core.schema import StageBlock
from janus_plugins.model.lora import under


def check_learn(model: nn.Module, stage: StageBlock) -> None:
    """Refuse a pattern of `learn` that names no parameter.

    Raises:
        RunFileError: naming the stage, the pattern and the nearest address that there is.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in stage.learn:
        if any(under(name, pattern) for name in names):
            continue
        near = difflib.get_close_matches(pattern, _addresses(names), n=1, cutoff=0.0)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise RunFileError(f"stages.{stage.name}.learn: {pattern!r} names no parameter of the model{hint}")


def _addresses(names: Iterable[str]) -> list[str]:
    addresses: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        addresses.update(dict.fromkeys(".".join(parts[:end]) for end in range(1, len(parts) + 1)))
    return list(addresses)
