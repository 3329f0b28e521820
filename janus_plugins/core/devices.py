"""What a device is asked before something is computed on it."""

from __future__ import annotations

import functools
import importlib.util
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def launches_triton(device: torch.device) -> bool:
    """Answer whether Triton's kernels run on a device: a GPU of NVIDIA's, the current one."""
    if device.type != "cuda" or not _has_triton():
        return False
    import torch

    current = device.index is None or device.index == torch.cuda.current_device()
    return current and torch.version.hip is None


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def without_plans(device: torch.device) -> AbstractContextManager[None]:
    """Keep `scaled_dot_product_attention` from cuDNN, which plans anew for every shape that it has not met.

    Segments, numbers of items and a cache that fills are of ever new shapes. In one step of Janus-1.3B's
    stage II on an H200 the host planned for 1.8 s what the device then did in 0.05 s (torch's profiler).
    """
    if device.type != "cuda":
        return nullcontext()
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if torch.compiler.is_compiling():
        return nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
