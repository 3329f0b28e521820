"""Measure how fast the reference trains on a GPU: tokens a second, MFU and waiting for data, by stage.

Run `python -m benchmarks.gpu_training [--steps 4] [--samples 96] [--tflops 989]` (or `make bench-gpu`): the
whole of configs/janus_1.3b.yaml in bf16, rows of 4,096 slots, its mix, over Parquet files made in the formats
of its data sets (tests/reference/made.py), two workers. It runs as the file says, which computes activations
again, and with blocks compiled and activations kept; `--way` and `--stage` choose. A step has as many samples
as in the file (256, 512 and 256), so that the optimiser's part in it is the recipe's; `--samples` changes
that. They are taken in parts of `--at-once`: kept activations of 48 take 67 GiB in stage II, and of 72 in
stage III 120; a smaller GPU needs fewer. Every stage begins with fresh weights, and neither
those nor what it ends with are written.

Counted are useful tokens, without padding, and the operations that the model needs for them, not those of
activations computed again; of a stage's steps the median, without the first. `--set` changes the run file,
also to try the command on a smaller model without a GPU, which keeps nothing.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks import harness
from janus_plugins.core.plan import RunPlan
from janus_plugins.core.schema import StageBlock
from janus_plugins.door import plan as plan_of
from janus_plugins.model.compose import compose_plan
from janus_plugins.training import stages as training_stages
from janus_plugins.training.checkpoint import Checkpoints
from janus_plugins.training.loop import StageLoop
from janus_plugins.training.plan_recipe import plan_recipe, prepared
from janus_plugins.training.run import run_recipe
from janus_plugins.training.world import World, close_world, open_world
from tests.reference.cut import NO_DOWNLOADS, steps
from tests.reference.made import write_all
from tests.reference.running import Speed, speeds

WAYS = {
    "as the file says": (),
    "compiled, activations kept": ("engine.compile=true", "engine.checkpointing=false"),
}


@contextmanager
def nothing_written() -> Iterator[None]:
    """Let stages begin and end without writing weights, which takes longer than the steps to run."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(Checkpoints, "save_start", lambda *_: None))
        stack.enter_context(patch.object(training_stages, "_final_weights", lambda *_: ({}, None)))
        stack.enter_context(patch.object(training_stages, "_rebuilt", lambda *_: None))
        stack.enter_context(patch.object(Checkpoints, "save_stage", lambda self, *_: self.root))
        yield


def overridden(stage: StageBlock, given: argparse.Namespace) -> list[str]:
    """Return the changes to the run file for a stage of it."""
    samples = given.samples or stage.batch
    sizes = steps(samples, samples, samples, number=given.steps)
    return [*NO_DOWNLOADS, *sizes, f"engine.accumulate={math.ceil(samples / given.at_once)}"]


def measured(plan: RunPlan, name: str, world: World, out: Path) -> Speed:
    """Train a few steps of one stage in this process; return how fast they were."""
    stage = next(stage for stage in plan.run.stages if stage.name == name)
    alone = replace(plan, run=plan.run.model_copy(update={"stages": (stage,)}))

    def build(_: bool) -> Any:
        model = compose_plan(alone, weights=False, device=world.device)
        return prepared(model, alone.run.engine)

    recipe = replace(plan_recipe(alone), build=build, save_native=None)
    with nothing_written(), ExitStack() as turn:
        first = StageLoop._one_step

        def step(loop: StageLoop) -> bool:
            """Take a step; meanwhile no other benchmark may be at it."""
            if loop._position.step == 0:
                turn.enter_context(harness.turn())
            return first(loop)

        with patch.object(StageLoop, "_one_step", step):
            run_recipe(recipe, out, world)
    return speeds(alone, out)[name]


def main() -> int:
    """Train a few steps of every stage."""
    parser = harness.options(__doc__ or "")
    parser.add_argument("--steps", type=int, default=4, help="steps of each stage (default 4)")
    parser.add_argument("--samples", type=int, help="samples of a step (default: the file's)")
    parser.add_argument("--at-once", type=int, default=48, help="of these at once (default 48)")
    parser.add_argument(
        "--tflops", type=float, default=989.0, help="peak in 16 bits, dense (default: H100, H200)"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the run file")
    parser.add_argument("--way", action="append", choices=list(WAYS), help="default: both")
    parser.add_argument(
        "--stage", action="append", choices=["adapters", "unified", "finetune"], help="default: all three"
    )
    given = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    lines = [
        "| way | stage | samples | useful tokens/s | MFU | useful over slots | waited for data | GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    kept: dict[str, dict[str, Any]] = {}
    accelerated = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        reference = plan_of("janus_1.3b").run
        write_all(reference.data, Path(folder), rows=32)
        os.chdir(folder)
        world = open_world()
        for way in given.way or WAYS:
            for stage in reference.stages:
                name = stage.name
                if given.stage and name not in given.stage:
                    continue
                plan = plan_of("janus_1.3b", [*overridden(stage, given), *WAYS[way], *given.set])
                if accelerated:
                    torch.cuda.reset_peak_memory_stats()
                speed = measured(plan, name, world, Path(way.split()[0], name))
                peak = torch.cuda.max_memory_allocated() / 2**30 if accelerated else 0.0
                lines.append(
                    f"| {way} | {name} | {given.samples or stage.batch} | {speed.tokens_per_second:,.0f} "
                    f"| {speed.mfu(given.tflops):.1%} | {speed.packing:.1%} | {speed.data_wait:.1%} "
                    f"| {peak:.0f} |"
                )
                kept.setdefault(way, {})[name] = {
                    **asdict(speed), "mfu": speed.mfu(given.tflops), "peak_gib": peak,
                }  # fmt: skip
                print(lines[-1], flush=True)
        close_world()
    if accelerated:
        device = torch.cuda.get_device_name()
        text = "\n".join([*lines, "", f"{device}; {given.steps} steps, of which the first does not count"])
        harness.keep("gpu_training", text, {"device": device, "ways": kept})
    return 0


if __name__ == "__main__":
    sys.exit(main())
