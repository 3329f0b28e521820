"""Tensors on their way to a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return a tensor on `device` without waiting for what the device still has to do.

    From ordinary memory CUDA copies only when the work before is done, and the host waits for that; from
    pinned memory the copy takes its turn.
    """
    kind = str(device).partition(":")[0]
    if kind == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=kind != "cpu")
