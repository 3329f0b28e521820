"""Explain a run before it costs anything: parts, parameters, tokens, memory and time, on the meta device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import nn

import janus_plugins
from janus_plugins.core.plan import Part, RunPlan
from janus_plugins.core.schema import StageBlock
from janus_plugins.model.compose import compose_plan
from janus_plugins.model.flops import SampleFlops
from janus_plugins.model.learning import check_learn
from janus_plugins.model.lora import lora_counts, under
from janus_plugins.model.memory import GIB, ZERO_STAGES, fixed_bytes, row_bytes
from janus_plugins.model.training_plan import Machines, TrainingPlan, training_plan
from janus_plugins.model.unified import UnifiedModel
from janus_plugins.sequence.blocks import Blocks

WORLDS = (1, 8, 64, 128)


@dataclass(frozen=True)
class PartRow:
    """Describe one part: what it is, its shapes, its parameters."""

    address: str
    component: str
    distribution: str
    shapes: str
    parameters: int


@dataclass(frozen=True)
class StageRow:
    """Describe one stage: what it trains and what a step costs.

    Attributes:
        trainable: parameters by part address.
        memory: GiB of one GPU by "ZeRO stage" and number of GPUs, activations of one full row included.
    """

    name: str
    steps: int
    batch: int
    trainable: dict[str, int]
    tokens_per_sample: dict[str, int]
    tokens_per_step: int
    memory: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def total_trainable(self) -> int:
        """Return the parameters that this stage trains."""
        return sum(self.trainable.values())


@dataclass(frozen=True)
class Explanation:
    """Hold everything `janus-plugins explain` prints."""

    name: str
    parts: tuple[PartRow, ...]
    total: int
    stages: tuple[StageRow, ...]
    published_only: tuple[PartRow, ...]
    plan: TrainingPlan

    @property
    def published_total(self) -> int:
        """Return the parameters in published files, with those that the model does not use."""
        return self.total + sum(row.parameters for row in self.published_only)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for `--json`."""
        stages = [{**asdict(stage), "total_trainable": stage.total_trainable} for stage in self.stages]
        plan = {**asdict(self.plan), "published_mfu": self.plan.published_mfu}
        return {**asdict(self), "stages": stages, "published_total": self.published_total, "plan": plan}


def explain(plan: RunPlan, machines: Machines | None = None) -> Explanation:
    """Build a run's model on the meta device and count; plan its training on `machines`."""
    model = compose_plan(plan, _NoTokenizer(), weights=False, device="meta")  # type: ignore[arg-type]
    rows = [_part_row(model, plan, part) for part in plan.model.parts() if part.address != _HEAD]
    parts = (*rows, *_starts_rows(model, plan))
    stages = tuple(_stage_row(model, plan, stage) for stage in plan.run.stages)
    total, learnt = _count(model), {stage.name: stage.total_trainable for stage in stages}
    training = training_plan(plan, SampleFlops(plan, model), machines or Machines(), total, learnt)
    return Explanation(plan.run.name, parts, total, stages, _published_only(model, plan), training)


_HEAD = "language_model.text_head"
OWN = "janus-plugins"
PUBLISHED_ONLY = "in the published file only"


class _NoTokenizer:
    """Stand in for the tokenizer, which shapes do not need."""


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _part_row(model: UnifiedModel, plan: RunPlan, part: Part) -> PartRow:
    component = f"{part.spec.kind}/{part.spec.name}"
    return PartRow(
        part.address,
        component,
        f"{part.owner.distribution} {part.owner.version}",
        shapes(plan, part),
        _count(model.get_submodule(part.address)),
    )


def _starts_rows(model: UnifiedModel, plan: RunPlan) -> Iterator[PartRow]:
    """Yield what the framework adds to a path that predicts its codes in blocks."""
    for name, made in plan.model.generation.items():
        address = f"generation.{name}.starts"
        if address not in plan.model.starts():
            continue
        passes = Blocks.of(made.parallel).passes(made.facts.tokens)
        told = f"{made.num_starts} starts; {made.facts.tokens} codes in {len(passes)} passes"
        own = f"{OWN} {janus_plugins.__version__}"
        yield PartRow(address, "start embeddings", own, told, _count(model.get_submodule(address)))


def _published_only(model: UnifiedModel, plan: RunPlan) -> tuple[PartRow, ...]:
    """Ask each part what published files of it hold besides its own parameters."""
    rows = []
    for part in plan.model.parts():
        offered = getattr(model.get_submodule(part.address), "published_only", None)
        for name, count in (offered() if offered else {}).items():
            row = _part_row(model, plan, part)
            rows.append(
                replace(row, address=f"{part.address}.{name}", shapes=PUBLISHED_ONLY, parameters=count)
            )
    return tuple(rows)


def shapes(plan: RunPlan, part: Part) -> str:
    """Describe what enters and leaves a part, e.g. "image -> [576, 1024]"."""
    path, _, role = part.address.rpartition(".")
    facts = part.facts
    if part.address == "language_model":
        return f"[S, {facts.width}] -> [S, {facts.width}] -> {facts.vocab_size} tokens"
    if role == "head":
        several = f"{facts.codebooks} x " if facts.codebooks > 1 else ""
        return f"[{facts.in_width}] -> {several}{facts.size} {facts.predicts}"
    if role == "encoder":
        return _encoder_shapes(facts)
    kind, _, modality = path.partition(".")
    source = getattr(plan.model, kind)[modality].facts
    tokens, leaving = source.tokens, _leaving(part, source)
    inner = f", {facts.in_width}"
    if facts.accepts == "codes":
        inner = f", {facts.codebooks}" if facts.codebooks > 1 else ""
    return f"[{tokens or 'T'}{inner}] -> [{leaving}, {facts.out_width}]"


def _leaving(part: Part, source: Any) -> str:
    """Return how many tokens leave an adapter: "T" where items of two lengths leave with different ones."""
    lengths = (
        {source.tokens} if source.tokens is not None else {source.max_tokens, source.max_tokens // 2 or 2}
    )
    counts = {part.config.output_tokens(length) for length in lengths}
    return str(*counts) if len(counts) == 1 else "T"


def _encoder_shapes(facts: Any) -> str:
    if hasattr(facts, "form"):
        kind = f"codes of {facts.codebook_size}" if facts.form == "codes" else f"latents [{facts.width}]"
        several = f" x {facts.codebooks}" if facts.codebooks > 1 else ""
        return f"{facts.modality} <-> {facts.tokens}{several} {kind}"
    tokens = facts.tokens if facts.tokens is not None else f"up to {facts.max_tokens}"
    return f"{facts.modality} -> [{tokens}, {facts.width}]"


def trainable(model: nn.Module, stage: StageBlock, plan: RunPlan) -> dict[str, int]:
    """Count the parameters that a stage trains, by part address.

    Raises:
        RunFileError: a pattern of `learn` or `lora` names nothing that can learn.
    """
    check_learn(model, stage)
    counts: dict[str, int] = {}
    addresses = sorted((a for a in plan.model.addresses() if a != _HEAD), key=len, reverse=True)
    for name, parameter in model.named_parameters():
        if any(under(name, prefix) for prefix in stage.learn):
            owner = next(address for address in addresses if name.startswith(address + "."))
            counts[owner] = counts.get(owner, 0) + parameter.numel()
    for name, number in lora_counts(model, stage).items():
        owner = next(address for address in addresses if under(name, address))
        counts[owner] = counts.get(owner, 0) + number
    return counts


def _stage_row(model: UnifiedModel, plan: RunPlan, stage: StageBlock) -> StageRow:
    counts = trainable(model, stage, plan)
    tokens = tokens_per_sample(plan)
    per_step = _tokens_per_step(plan, stage, tokens)
    memory = {
        f"ZeRO {zero}": {
            f"{world} GPU" + ("s" if world > 1 else ""): round(
                memory_bytes(plan, stage, _count(model), sum(counts.values()), zero, world) / GIB, 4
            )
            for world in WORLDS
        }
        for zero in ZERO_STAGES
    }
    return StageRow(stage.name, stage.last_step, stage.batch, counts, tokens, per_step, memory)


def tokens_per_sample(plan: RunPlan) -> dict[str, int]:
    """Return the slots that one item takes on each path, its two special tokens included."""
    slots = {}
    for name, path in plan.model.understanding.items():
        slots[f"understanding.{name}"] = path.tokens(path.facts.max_tokens) + 2
    for name, made in plan.model.generation.items():
        slots[f"generation.{name}"] = made.slots + 2
    return slots


def _tokens_per_step(plan: RunPlan, stage: StageBlock, tokens: dict[str, int]) -> int:
    """Count item slots of a full step; texts come on top, as long as the data makes them."""
    if stage.reconstruct is not None:
        return stage.batch * plan.model.generation[stage.reconstruct].facts.tokens
    whole = sum(stage.mix.values())
    longest = {
        task: max((slots for path, slots in tokens.items() if path.startswith(task)), default=0)
        for task in stage.mix
    }
    return round(sum(stage.batch * ratio / whole * longest[task] for task, ratio in stage.mix.items()))


def memory_bytes(plan: RunPlan, stage: StageBlock, total: int, learnt: int, zero: int, world: int) -> float:
    """Estimate one GPU's bytes for micro-batches of one full row; see `model/memory.py`."""
    return fixed_bytes(plan, total, learnt, zero, world) + row_bytes(plan, stage)
