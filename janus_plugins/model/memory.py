"""Count the bytes of one GPU in training, without one.

Weights, gradients and optimiser states by the rules of ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054,
section 3), the language model's activations by Korthikanti et al. 2022 (arXiv 2205.05198, section 4: about
34 s b h bytes a layer in bf16 with fused attention, 2 s b h with full recomputation), the text logits of one
chunk, what an encoder that learns keeps for its backward pass, and what a frozen one holds on its way.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from janus_plugins.core.plan import RunPlan
from janus_plugins.core.schema import StageBlock

GIB = 2**30
ZERO_STAGES = (0, 1, 2, 3)
LOGITS_CHUNK = 1024


def fixed_bytes(plan: RunPlan, total: int, learnt: int, zero: int, world: int) -> float:
    """Return one GPU's bytes before any data: weights, gradients, AdamW's states, logits of one chunk.

    Args:
        plan: the run.
        total: parameters of the model.
        learnt: how many of them learn.
        zero: ZeRO stage, 0 to 3.
        world: number of GPUs.
    """
    weight, gradient, states = (2, 2, 12) if _bf16(plan) else (4, 4, 8)
    share = {0: (1, 1, 1), 1: (1, 1, world), 2: (1, world, world), 3: (world, world, world)}[zero]
    logits = 4 * 2 * LOGITS_CHUNK * plan.model.facts.vocab_size
    return total * weight / share[0] + learnt * gradient / share[1] + learnt * states / share[2] + logits


def row_bytes(plan: RunPlan, stage: StageBlock) -> float:
    """Return the bytes of the language model's activations for one packed row."""
    facts, wide = plan.model.facts, 1 if _bf16(plan) else 2
    checkpointing = plan.run.engine.checkpointing
    # Selective: of a layer's products (11.5 widths a slot) about half, attention's output, and the input.
    per_layer = {True: 2, False: 34, "selective": 16}[checkpointing] * wide
    kept = per_layer * facts.num_layers + (34 * wide if checkpointing else 0)
    return float(kept * stage.max_length * facts.width)


def saved_bytes(module: nn.Module, run: Callable[[], object], bf16: bool) -> float:
    """Return the bytes that autograd keeps while `run` uses `module`, its parameters not counted.

    On the meta device attention keeps its scores, which fused attention does not: an upper bound.
    """
    own = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage()._cdata
        if address not in own and tensor.numel() > kept.get(address, tensor[..., :0]).numel():
            kept[address] = tensor
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        made = run()
    del made
    width = 2 if bf16 else 4
    return float(
        sum(t.numel() * (width if t.is_floating_point() else t.element_size()) for t in kept.values())
    )


def passing_bytes(module: nn.Module, run: Callable[[], object], bf16: bool) -> float:
    """Return about the most bytes that `run` holds at once without a graph: four of its largest tensors.

    Four, as in a residual block of convolutions: its input, the normalised one, that activated, the output.
    """
    largest = 0

    def look(_: nn.Module, __: object, output: object) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, output.numel())

    hooks = [child.register_forward_hook(look) for child in module.modules()]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return float(4 * largest * (2 if bf16 else 4))


def _bf16(plan: RunPlan) -> bool:
    return plan.run.engine.precision == "bf16"
