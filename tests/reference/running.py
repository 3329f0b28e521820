"""Run the reference configuration on made data, and tell how fast its steps were."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from janus_plugins.core.plan import RunPlan
from janus_plugins.door import plan as plan_of
from janus_plugins.model.explain import explain
from janus_plugins.model.training_plan import Machines, StagePlan
from janus_plugins.training.metrics import read_metrics

from .made import write_all


@dataclass(frozen=True)
class Trained:
    """Hold a finished run: its folder, its processor seconds (a busy machine adds none), its peak GiB."""

    out: Path
    seconds: float
    peak: float


@dataclass(frozen=True)
class Speed:
    """Say how fast a stage was: the median of its steps but the first.

    Attributes:
        tokens_per_second: useful ones, without padding.
        flops_per_token: operations that the model needs for one, of the stage's mix of samples.
        packing: useful tokens over slots.
        data_wait: share of the time in which data was waited for.
    """

    tokens_per_second: float
    flops_per_token: float
    packing: float
    data_wait: float

    def mfu(self, tflops: float) -> float:
        """Return the share of a peak, in 10^12 operations a second, that useful tokens took."""
        return self.tokens_per_second * self.flops_per_token / (tflops * 1e12)


def run_reference(folder: Path, overrides: Sequence[str], rows: int = 4) -> Trained:
    """Train the reference on made data in a process of its own."""
    write_all(plan_of("janus_1.3b").run.data, folder, rows)
    options = [word for override in overrides for word in ("--set", override)]
    command = [sys.executable, "-m", "janus_plugins", "train", "janus_1.3b", *options]
    command += ["--no-evaluate", "--out", "out"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    before = _processor_seconds()
    done = subprocess.run(
        command, cwd=folder, env=os.environ | offline, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return Trained(folder / "out", _processor_seconds() - before, peak)


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def speeds(plan: RunPlan, out: Path) -> dict[str, Speed]:
    """Return how fast each stage of a finished run was.

    Operations are counted for the stage's mix, every sample with the mean number of its stage's text tokens.
    """
    lines = list(read_metrics(out))
    least = {stage.name: stage for stage in explain(plan, Machines(item_text=1, text=1)).plan.stages}
    found = {}
    for stage in plan.run.stages:
        steps = [line for line in lines if line["stage"] == stage.name][1:]
        tokens = statistics.mean(line["tokens"] for line in steps)
        text = 1 + max(0, round((tokens - least[stage.name].tokens_per_step) / stage.batch))
        planned = _planned(plan, stage.name, text)
        found[stage.name] = Speed(
            statistics.median(line["tokens_per_second"] for line in steps),
            planned.flops_per_step / planned.tokens_per_step,
            statistics.median(line["packing"] for line in steps),
            statistics.median(line["data_wait"] for line in steps),
        )
    return found


def _planned(plan: RunPlan, name: str, text: int) -> StagePlan:
    stages = explain(plan, Machines(item_text=text, text=text)).plan.stages
    return next(stage for stage in stages if stage.name == name)
