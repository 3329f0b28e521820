"""How much faster two ranks train than one, each pinned to a core of its own: ZeRO-2 on CPUs with gloo.

Run `python -m benchmarks.ranks`. The same steps of the digits model's stage II, its language model wider so
that a step is long against its messages; seconds are those of the log, start-up and first steps left out.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import harness

OVERRIDES = [
    *(f"stages.{name}=null" for name in ("tokenizer", "adapters", "finetune")),
    "model.language_model.options.hidden_size=384",
    "model.language_model.options.intermediate_size=1024",
    "stages.unified.steps=30",
    "stages.unified.schedule.warmup=0",
    "engine.deepspeed.zero_optimization.stage=2",
    "engine.log_every=1",
    "engine.save_every=1000",
    "engine.sample_every=null",
]
FIRST = 10
"""Steps left out."""


def step_seconds(world: int, folder: Path) -> list[float]:
    """Train on so many ranks, each on one core; return the seconds of each step that counts."""
    out = folder / f"run{world}"
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    words += [
        "-m",
        "janus_plugins",
        "train",
        "digits",
        "--no-evaluate",
        "--out",
        str(out),
    ]
    for override in OVERRIDES:
        words += ["--set", override]
    cores = ",".join(map(str, range(world)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(["taskset", "-c", cores, *words], check=True, env=environment, capture_output=True)
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [one["seconds"] for one in map(json.loads, lines) if "loss" in one][FIRST:]


def main() -> int:
    """Measure one rank and two, in turns."""
    given = harness.options(__doc__ or "").parse_args()
    made = harness.Comparison("30 steps of stage II, ZeRO-2", "two ranks")
    with tempfile.TemporaryDirectory() as folder:
        before = harness.ticks()
        for number in range(given.rounds):
            for label, world in (("two ranks", 2), ("one rank", 1)):
                taken = statistics.median(step_seconds(world, Path(folder, str(number))))
                made.cpu.setdefault(label, []).append(taken)
                made.wall.setdefault(label, []).append(taken)
        after = harness.ticks()
    made.stolen = (after[0] - before[0]) / max(1, after[1] - before[1])
    made.counts = {"seconds are": "of a step, wall-clock"}
    return harness.report("ranks", [made], given.force)


if __name__ == "__main__":
    sys.exit(main())
