"""Plan the training of a run on given machines: what fits, what a step is, and how long it takes.

Estimates from counts alone (`model/flops.py`, `model/memory.py`): the share of the machines' peak that
training reaches (MFU) is an assumption, and so are the lengths of texts, which only the data knows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from janus_plugins.core.plan import RunPlan
from janus_plugins.core.samples import Task
from janus_plugins.core.schema import Published, StageBlock
from janus_plugins.model.flops import SampleFlops, Shape
from janus_plugins.model.memory import GIB, ZERO_STAGES, fixed_bytes, row_bytes

SECONDS_A_DAY = 86_400
USABLE = 0.9
"""Share of a GPU's memory to plan with; the rest is for the driver, kernels and fragmentation."""


@dataclass(frozen=True)
class Machines:
    """Describe what a run is to be trained on, and what its texts are taken to be.

    Attributes:
        gpus: number of GPUs.
        memory: GiB of each.
        tflops: peak of each in 16 bits, dense, in 10^12 operations a second (A100: 312; H100, H200: 989).
        mfu: share of the peak that training reaches (model FLOPs utilisation).
        item_text: tokens of text beside an item.
        text: tokens of a sample that is text alone.
    """

    gpus: int = 128
    memory: float = 40.0
    tflops: float = 312.0
    mfu: float = 0.4
    item_text: int = 64
    text: int = 1024


@dataclass(frozen=True)
class Fit:
    """Say how one ZeRO stage fits a stage of the recipe.

    Attributes:
        zero: the ZeRO stage.
        fixed: GiB of one GPU before any data.
        row: GiB that one packed row takes, with its items' encoders (one item, where a stage reconstructs).
        rows: most rows of a micro-batch that fit; 0 where none does.
        accumulate: micro-batches of a step on each GPU; None where no row fits.
    """

    zero: int
    fixed: float
    row: float
    rows: int
    accumulate: int | None


@dataclass(frozen=True)
class StagePlan:
    """Plan one stage.

    Attributes:
        tokens: slots of a sample, by task.
        flops: operations of training on a sample, by task.
        tokens_per_step, flops_per_step: of all GPUs together.
        rows_per_gpu: packed rows that a GPU's share of a step fills.
        days: length of the stage.
        days_of_rows: the same if `batch` counted packed rows filled to `max_length`, not samples.
        fits: one for each ZeRO stage.
        choice: the one to take; None where nothing fits.
    """

    name: str
    steps: int
    batch: int
    tokens: dict[str, int]
    flops: dict[str, float]
    tokens_per_step: int
    flops_per_step: float
    rows_per_gpu: int
    days: float
    days_of_rows: float
    fits: tuple[Fit, ...]
    choice: Fit | None


@dataclass(frozen=True)
class TrainingPlan:
    """Plan a whole run.

    Attributes:
        estimated: parts that could not be run on the meta device, and count as 2 N T.
        published: what the recipe's source says of its own training; see `published_mfu`.
    """

    machines: Machines
    stages: tuple[StagePlan, ...]
    days: float
    days_of_rows: float
    estimated: tuple[str, ...]
    published: Published | None

    @property
    def published_mfu(self) -> tuple[float, float] | None:
        """Return the MFU at which it takes as long as published: if `batch` counts samples, and if rows."""
        known, machines = self.published, self.machines
        if known is None:
            return None
        peak = known.gpus * known.tflops * known.days
        ours = machines.gpus * machines.tflops * machines.mfu
        return ours * self.days / peak, ours * self.days_of_rows / peak


def training_plan(
    plan: RunPlan, flops: SampleFlops, machines: Machines, total: int, learnt: dict[str, int]
) -> TrainingPlan:
    """Plan every stage of a run.

    Args:
        plan: the run.
        flops: what its samples cost.
        machines: what it is to be trained on.
        total: parameters of the model.
        learnt: parameters that each stage trains, by its name.
    """
    stages = tuple(
        _stage(plan, flops, machines, stage, (total, learnt[stage.name])) for stage in plan.run.stages
    )
    days, of_rows = sum(one.days for one in stages), sum(one.days_of_rows for one in stages)
    return TrainingPlan(machines, stages, days, of_rows, flops.estimated, plan.run.published)


def shapes_of(plan: RunPlan, stage: StageBlock, task: Task, machines: Machines) -> list[Shape]:
    """Return what a task's samples are made of: a shape for each modality that its sources hold."""
    if task == "text":
        return [Shape(machines.text, machines.text)]
    names = plan.data if stage.sources is None else stage.sources
    facts = [plan.data[name].facts for name in names if plan.data[name].block.task == task]
    text = machines.item_text
    shown = sorted({modality for one in facts for modality in one.understanding})
    made = sorted({modality for one in facts for modality in one.generation})
    return [Shape(text, text, understanding=one) for one in shown] + [
        Shape(text, 0, generation=one) for one in made
    ]


def _stage(
    plan: RunPlan, flops: SampleFlops, machines: Machines, stage: StageBlock, sizes: tuple[int, int]
) -> StagePlan:
    shares, tokens, costs = _samples(plan, flops, stage, machines)
    length = sum(shares[task] * tokens[task] for task in shares)
    step = stage.batch * sum(shares[task] * costs[task] for task in shares)
    days = stage.last_step * step / _per_day(machines)
    fuller = 1.0 if stage.reconstruct else stage.max_length / length
    rows = _rows(plan, stage, length, machines)
    fits = tuple(_fit(plan, flops, stage, machines, sizes, zero, rows) for zero in ZERO_STAGES)
    return StagePlan(
        name=stage.name,
        steps=stage.last_step,
        batch=stage.batch,
        tokens={task: round(count) for task, count in tokens.items()},
        flops=costs,
        tokens_per_step=round(stage.batch * length),
        flops_per_step=step,
        rows_per_gpu=rows,
        days=days,
        days_of_rows=days * fuller,
        fits=fits,
        choice=_choice(fits, machines.gpus),
    )


def _samples(
    plan: RunPlan, flops: SampleFlops, stage: StageBlock, machines: Machines
) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Return by task: its share of a step's samples, the slots of a sample, and what training on it costs."""
    if stage.reconstruct is not None:
        slots = plan.model.generation[stage.reconstruct].facts.tokens
        cost = flops.training(Shape(0, 0), stage)
        return {"reconstruct": 1.0}, {"reconstruct": float(slots)}, {"reconstruct": cost}
    whole = sum(stage.mix.values())
    shapes = {
        task: [_cut(shape, flops, stage) for shape in shapes_of(plan, stage, task, machines)]
        for task, ratio in stage.mix.items()
        if ratio
    }
    return (
        {task: stage.mix[task] / whole for task in shapes},
        {task: _mean([flops.tokens(one) for one in of]) for task, of in shapes.items()},
        {task: _mean([flops.training(one, stage) for one in of]) for task, of in shapes.items()},
    )


def _cut(shape: Shape, flops: SampleFlops, stage: StageBlock) -> Shape:
    """Return the sample with so much text that it fits into a row."""
    over = max(0, flops.tokens(shape) - stage.max_length)
    text = max(0, shape.text - over)
    return replace(shape, text=text, learnt_text=min(shape.learnt_text, text))


def _mean(values: list[float] | list[int]) -> float:
    return sum(values) / len(values) if values else 0.0


def _per_day(machines: Machines) -> float:
    """Return the operations of a day."""
    return machines.gpus * machines.tflops * 1e12 * machines.mfu * SECONDS_A_DAY


def _rows(plan: RunPlan, stage: StageBlock, length: float, machines: Machines) -> int:
    """Return the packed rows that one GPU's share of a step fills (items, where the stage reconstructs)."""
    samples = math.ceil(stage.batch / machines.gpus)
    if stage.reconstruct is not None:
        return samples
    return math.ceil(samples / max(1, int(stage.max_length / length)))


def _fit(
    plan: RunPlan,
    flops: SampleFlops,
    stage: StageBlock,
    machines: Machines,
    sizes: tuple[int, int],
    zero: int,
    rows: int,
) -> Fit:
    fixed = fixed_bytes(plan, *sizes, zero, machines.gpus)
    samples = math.ceil(stage.batch / machines.gpus) / rows
    row = flops.encoder_bytes(stage) * samples
    row += 0.0 if stage.reconstruct is not None else row_bytes(plan, stage)
    fitting = max(0, int((machines.memory * GIB * USABLE - fixed) / row))
    accumulate = math.ceil(rows / fitting) if fitting else None
    return Fit(zero, fixed / GIB, row / GIB, fitting, accumulate)


def _choice(fits: tuple[Fit, ...], gpus: int) -> Fit | None:
    """Choose ZeRO 2 where a row fits, else ZeRO 3; on one GPU there is nothing to share.

    ZeRO 0, 1 and 2 send the same volume, ZeRO 3 half as much again (arXiv 1910.02054, section 7).
    """
    order = (0,) if gpus == 1 else (2, 3)
    return next((fits[zero] for zero in order if fits[zero].rows), None)
