"""Which of torch's ways `scaled_dot_product_attention` may take."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def without_plans(device: torch.device) -> AbstractContextManager[None]:
    """Keep `scaled_dot_product_attention` from cuDNN, which plans anew for every shape that it has not met.

    Segments, numbers of items and a cache that fills are of ever new shapes. In one step of Janus-1.3B's
    stage II on an H200 the host planned for 1.8 s what the device then did in 0.05 s.
    """
    if device.type != "cuda" or torch.compiler.is_compiling():
        return nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
