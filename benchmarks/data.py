"""How full the reference's packed rows are, and how fast data workers prepare them.

Run `OMP_NUM_THREADS=1 python -m benchmarks.data [--rounds N]`: the three stages of `configs/janus_1.3b.yaml`,
its mix, its steps of 256, 512 and 256 samples and its rows of 4,096 slots, over Parquet files made in the
formats of its data sets (tests/reference/made.py). A text is spelt in bytes, as no tokenizer can be fetched.
How many workers a GPU takes is worked out: the tokens a second of 45 % of 989 TFLOP/s over a worker's.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import harness
from janus_plugins.core.plan import RunPlan
from janus_plugins.core.schema import StageBlock
from janus_plugins.data.loader import StepLoader
from janus_plugins.door import plan as plan_of
from janus_plugins.model.compose import compose_plan
from janus_plugins.model.flops import SampleFlops, Shape
from tests.reference.cut import NO_DOWNLOADS, steps
from tests.reference.made import write_all

GPU, SHARE = 989e12, 0.45
"""Peak of an H100 or H200 in 16 bits, dense, in operations a second, and how much of it a step is to use."""


def prepared(plan: RunPlan, model: Any, stage: StageBlock) -> dict[str, float]:
    """Prepare a stage's steps in this process; return what they hold and what they cost."""
    tokens = slots = samples = 0
    started = 0.0
    for number, batch in enumerate(StepLoader(plan, model.tokenizer, stage)):
        if number:  # the first one opens the files
            tokens, slots, samples = tokens + batch.tokens, slots + batch.slots, samples + stage.batch
        else:
            started = time.process_time()
    seconds = time.process_time() - started
    return {
        "packing": tokens / slots,
        "tokens": tokens / samples,
        "samples_per_second": samples / seconds,
        "tokens_per_second": tokens / seconds,
    }


def main() -> int:
    """Measure every stage."""
    parser = harness.options(__doc__ or "")
    given = parser.parse_args()
    lines = [
        "| stage | useful tokens over slots | tokens a sample | samples/s, a worker | workers a GPU takes |",
        "|---|---|---|---|---|",
    ]
    kept = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        write_all(plan_of("janus_1.3b").run.data, Path(folder), rows=64)
        os.environ |= {"HF_HOME": folder, "HF_HUB_OFFLINE": "1"}
        whole = {stage.name: stage.batch for stage in plan_of("janus_1.3b").run.stages}
        sizes = steps(**whole, number=given.rounds + 1)
        plan = plan_of("janus_1.3b", [*NO_DOWNLOADS, *sizes, "engine.workers=0"])
        model = compose_plan(plan, weights=False, device="meta")
        flops = SampleFlops(plan, model)
        for stage in plan.run.stages:
            found = prepared(plan, model, stage)
            shape = Shape(max(1, round(found["tokens"]) - 578), 0, generation="image")
            wanted = GPU * SHARE / flops.training(shape, stage) * flops.tokens(shape)
            found["workers"] = wanted / found["tokens_per_second"]
            kept[stage.name] = found
            lines.append(
                f"| {stage.name} | {found['packing']:.1%} | {found['tokens']:.0f} | "
                f"{found['samples_per_second']:.0f} | {found['workers']:.2f} |"
            )
    harness.keep("data", "\n".join(lines), {"steps": given.rounds, "stages": kept})
    return 0


if __name__ == "__main__":
    sys.exit(main())
