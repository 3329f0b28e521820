"""One optimiser step under DeepSpeed, for whatever ZeRO stage and precision the run file asks for.

DeepSpeed divides a loss by the number of micro-batches and averages gradients over ranks. Both are undone
here by one factor, so that world size, accumulation and packing never change a gradient.

A bad step changes nothing: what moves by itself in the forward pass (running means, as of codebooks) is put
back. A non-finite loss poisons its own gradient (so the one check sees both), every DeepSpeed optimiser that
wraps ours refuses a non-finite gradient on all ranks alike, and for the one case without a wrapper (ZeRO 0 in
fp32) we look at the reduced gradients ourselves.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from janus_plugins.core.answered import watched
from janus_plugins.core.blame import full_name
from janus_plugins.core.devices import without_plans
from janus_plugins.core.plan import Part
from janus_plugins.core.schema import EngineBlock, StageBlock
from janus_plugins.inference.halves import widened
from janus_plugins.sequence.batch import Batch
from janus_plugins.training.ds_config import deepspeed_config, zero_stage
from janus_plugins.training.optim import Learning, build_optimizer, loss_scales, rate_factor, set_rates
from janus_plugins.training.world import World


@dataclass(frozen=True)
class StepOutcome:
    """Say what one optimiser step did.

    Attributes:
        sums: summed loss by label, of this rank.
        counts: positions that each sum is over, of this rank.
        applied: whether parameters changed; False when something was not finite.
        grad_norm: norm of the gradient before clipping (of the whole model); NaN or infinite on a bad step.
        rate: largest learning rate.
    """

    sums: dict[str, float]
    counts: dict[str, float]
    applied: bool
    grad_norm: float
    rate: float


@contextmanager
def linear_restored() -> Iterator[None]:
    """Put torch's linear layer back at the end, which DeepSpeed replaces under ZeRO 3 for good."""
    linear = functional.linear
    try:
        yield
    finally:
        functional.linear = linear


class Engine:
    """Train one stage of a model under DeepSpeed.

    Attributes:
        deepspeed: the DeepSpeed engine, for saving and loading.
        module: the model inside it.
        optimizer: torch's optimiser below DeepSpeed's.
    """

    def __init__(
        self, model: nn.Module, stage: StageBlock, block: EngineBlock, learning: Learning, world: World
    ) -> None:
        import deepspeed

        self._stage, self._world = stage, world
        self.optimizer = build_optimizer(model, stage, learning, world.device)
        self.deepspeed: Any
        self.deepspeed, *_ = deepspeed.initialize(
            model=model,
            optimizer=self.optimizer,
            config=deepspeed_config(block, stage, world.size),
            dist_init_required=False,
        )
        self.module: nn.Module = self.deepspeed.module
        # ZeRO 0 in fp32 hands back our own optimiser: nothing between a bad gradient and the weights.
        self._unguarded = self.deepspeed.optimizer is self.optimizer
        self._norm = 0.0
        if block.precision == "bf16" and zero_stage(block) == 0:
            # DeepSpeed 0.19 takes a dry step to allocate the moments and leaves its count of 1 behind, which
            # makes Adam's bias correction (and so the first steps) too small: 0.74 of the rate at step 1.
            self.optimizer.state.clear()
        if self._unguarded:
            self.optimizer.register_step_pre_hook(self._refuse_nonfinite)
        self._undo = float(world.size * block.accumulate)
        for part in self.module.modules():
            if hasattr(part, "set_accumulation"):
                part.set_accumulation(block.accumulate)

    def step(
        self,
        micro: Sequence[Batch],
        counts: Mapping[str, int],
        step: int,
        meanwhile: Callable[[], None] | None = None,
    ) -> StepOutcome:
        """Take optimiser step `step` (0-based, in the stage) on this rank's micro-batches.

        Args:
            micro: this rank's micro-batches, as many as `engine.accumulate`.
            counts: positions of each path over all ranks and micro-batches; not all zero.
            step: position in the schedule.
            meanwhile: what the host may do once the last forward pass is on its way to the device.
        """
        rates = set_rates(
            self.optimizer.param_groups, rate_factor(self._stage.schedule, step, self._stage.steps)
        )
        scales = loss_scales(counts, self._stage.loss_mean)
        scale = {path: value * self._undo for path, value in scales.items()}
        totals = _Totals()
        before = {name: value.clone() for name, value in self.module.named_buffers()}
        for batch in micro:
            with widened(self.module), without_plans(self._world.device):
                losses = self.deepspeed(batch.to(self._world.device), scale, self._stage.reconstruct)
                totals.add(losses.sums, losses.counts)
                if meanwhile is not None and batch is micro[-1]:
                    meanwhile()
                self.deepspeed.backward(_poisoned(losses.loss))
            self._measure()
            self.deepspeed.step()
        applied, norm = self._verdict()
        if not applied:
            for name, value in self.module.named_buffers():
                value.copy_(before[name])
        return StepOutcome(*totals.read(), applied, norm, max(rates))

    def first_not_finite(self, micro: Sequence[Batch]) -> str | None:
        """Say what of a forward pass was the first that is not finite, and whose; None where all is finite.

        To be called on every rank: under ZeRO 3 they gather weights together. What moves by itself in a
        forward pass moves.

        Args:
            micro: this rank's micro-batches.
        """
        found: list[str] = []

        def look(part: Part, what: str, value: Tensor) -> None:
            if not found and not value.isfinite().all():
                found.append(f"the {what} of {full_name(part)} were not")

        for batch in micro:
            with torch.no_grad(), widened(self.module), without_plans(self._world.device), watched(look):
                losses = self.deepspeed(
                    batch.to(self._world.device), defaultdict(float), self._stage.reconstruct
                )
            if not found and not losses.loss.isfinite():
                found.append("the loss was not")
        return found[0] if found else None

    def _measure(self) -> None:
        """Measure the reduced gradient, where DeepSpeed will not."""
        if self._unguarded and self.deepspeed.is_gradient_accumulation_boundary():
            self._norm = _norm([p.grad for p in self.module.parameters() if p.grad is not None])

    def _refuse_nonfinite(self, *_: Any) -> None:
        """Drop every gradient if one is not finite: AdamW then leaves weights and moments as they are.

        Runs right before AdamW's own step, after DeepSpeed's clipping (which needs gradients to be there).
        """
        if not math.isfinite(self._norm):
            for parameter in self.module.parameters():
                parameter.grad = None

    def _verdict(self) -> tuple[bool, float]:
        if self._unguarded:
            return math.isfinite(self._norm), self._norm
        norm = self.deepspeed.get_global_grad_norm()
        return bool(self.deepspeed.was_step_applied()), math.nan if norm is None else float(norm)

    def close(self) -> None:
        """Let DeepSpeed's engine go; the model inside cannot be used again under ZeRO 3.

        It holds itself: its memory is free after the next `World.collect_garbage`.
        """
        self.deepspeed.destroy()
        self.deepspeed = None
        from deepspeed.runtime.zero import parameter_offload

        # Under ZeRO 3 DeepSpeed keeps the module that it was made for in a list of the whole process.
        ours = {id(module) for module in self.module.modules()}
        kept = getattr(parameter_offload, "FWD_MODULE_STACK", [])
        kept[:] = [module for module in kept if id(module) not in ours]


class _Totals:
    """Add up detached sums on the device, and read them once."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}

    def add(self, sums: Mapping[str, Tensor], counts: Mapping[str, Tensor]) -> None:
        for label, value in sums.items():
            self._sums[label] = self._sums.get(label, 0) + value.double()
            self._counts[label] = self._counts.get(label, 0) + counts[label].double()

    def read(self) -> tuple[dict[str, float], dict[str, float]]:
        labels = list(self._sums)
        if not labels:
            return {}, {}
        values = torch.stack([*self._sums.values(), *self._counts.values()]).tolist()
        return (
            dict(zip(labels, values[: len(labels)], strict=True)),
            dict(zip(labels, values[len(labels) :], strict=True)),
        )


def _poisoned(loss: Tensor) -> Tensor:
    """Return the loss times exactly 1, or times NaN where it is not finite, without waiting for a device.

    A NaN loss can have a finite gradient; multiplied by NaN it has none.
    """
    return loss * (loss.detach() * 0 + 1)


def _norm(gradients: Sequence[Tensor]) -> float:
    if not gradients:
        return 0.0
    return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm([g.float() for g in gradients]))))


def step_counts(micro: Sequence[Batch], reconstruct: str | None) -> dict[str, int]:
    """Count the positions (or, reconstructing, the items) that each path of a step answers for."""
    if reconstruct is not None:
        items = [batch.generation[reconstruct] for batch in micro]
        return {"reconstruct": sum(len(item.lengths) for item in items if not item.absent)}
    counts: dict[str, int] = {}
    for batch in micro:
        for path, count in batch.targets().items():
            counts[path] = counts.get(path, 0) + count
    return counts


def add_counts(parts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Add the counts of several ranks."""
    total: dict[str, int] = {}
    for part in parts:
        for path, count in part.items():
            total[path] = total.get(path, 0) + count
    return dict(sorted(total.items()))
