"""What selective checkpointing keeps: attention, and every second product.

Those take nearly all of a block's time, and half of what they write; norms, gates and sums are computed
again in the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

_ATEN = torch.ops.aten

_PRODUCTS = {_ATEN.mm.default, _ATEN.addmm.default, _ATEN.bmm.default}
_ATTENTION = {
    _ATEN._scaled_dot_product_flash_attention.default,
    _ATEN._scaled_dot_product_efficient_attention.default,
    _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
    _ATEN._scaled_dot_product_cudnn_attention.default,
}


def selective_contexts() -> Any:
    """Return the contexts of one block's forward pass and its repetition, for `torch.utils.checkpoint`."""
    seen = {False: 0, True: 0}

    def policy(context: Any, operation: Any, *_: Any, **__: Any) -> CheckpointPolicy:
        keep = operation in _ATTENTION
        if operation in _PRODUCTS:
            seen[context.is_recompute] += 1
            keep = seen[context.is_recompute] % 2 == 1
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)  # type: ignore[no-untyped-call]
