"""Say whose fault it is that a step of decoding fails, where the step runs as Python."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from janus_plugins.core.blame import blamed
from janus_plugins.core.plan import Part


def blamed_in_step(part: Part | None, doing: str, given: Tensor) -> AbstractContextManager[None]:
    """Do `core.blame.blamed`; a step that is compiled is recorded without it, and None is nobody's part."""
    if part is None or torch.compiler.is_compiling():
        return nullcontext()
    return blamed(part, doing, given)
