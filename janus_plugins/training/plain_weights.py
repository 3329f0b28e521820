"""Hold DeepSpeed's loader to plain weights, so that a foreign checkpoint is refused instead of run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def plain_weights_only() -> Iterator[None]:
    """Hold every `torch.load` inside, DeepSpeed's too, to tensors and plain data.

    DeepSpeed passes weights_only=False itself; torch's own variable overrules that. Three small classes of
    DeepSpeed are part of its files and are let through.
    """
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
