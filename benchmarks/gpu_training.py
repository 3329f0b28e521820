"""Measure how fast the reference trains on a GPU: tokens a second, MFU and waiting for data, by stage.

Run `python -m benchmarks.gpu_training [--steps 8] [--samples 48] [--tflops 989]` (or `make bench-gpu`): the
whole of configs/janus_1.3b.yaml in bf16, rows of 4,096 slots, its mix, over Parquet files made in the formats
of its data sets (tests/reference/made.py), two workers. It runs as the file says, which computes activations
again, and with blocks compiled and activations kept, which takes more memory; `--way` chooses one.
Counted are useful tokens, without padding, and the operations that the model needs for them, not those of
activations computed again. `--set` changes the run file, also to try the command on a smaller model without
a GPU, which keeps nothing.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import harness
from janus_plugins.door import plan as plan_of
from tests.reference.cut import NO_DOWNLOADS, steps
from tests.reference.running import run_reference, speeds

WAYS = {
    "as the file says": (),
    "compiled, activations kept": ("engine.compile=true", "engine.checkpointing=false"),
}


def main() -> int:
    """Train a few steps of every stage."""
    parser = harness.options(__doc__ or "")
    parser.add_argument("--steps", type=int, default=8, help="steps of each stage (default 8)")
    parser.add_argument("--samples", type=int, default=48, help="samples of a step (default 48)")
    parser.add_argument(
        "--tflops", type=float, default=989.0, help="peak in 16 bits, dense (default: H100, H200)"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the run file")
    parser.add_argument("--way", action="append", choices=list(WAYS), help="default: both")
    given = parser.parse_args()
    sizes = steps(given.samples, given.samples, given.samples, number=given.steps)
    lines = [
        "| way | stage | useful tokens/s | MFU | useful tokens over slots | waited for data |",
        "|---|---|---|---|---|---|",
    ]
    kept = {}
    for way in given.way or WAYS:
        overrides = [*NO_DOWNLOADS, *sizes, *WAYS[way], *given.set]
        with tempfile.TemporaryDirectory() as folder:
            out = run_reference(Path(folder), overrides, rows=64).out
            found = speeds(plan_of("janus_1.3b", overrides), out)
        for name, speed in found.items():
            lines.append(
                f"| {way} | {name} | {speed.tokens_per_second:,.0f} | {speed.mfu(given.tflops):.1%} "
                f"| {speed.packing:.1%} | {speed.data_wait:.1%} |"
            )
        kept[way] = {name: {**asdict(one), "mfu": one.mfu(given.tflops)} for name, one in found.items()}
        print("\n".join(lines), flush=True)
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
        text = "\n".join([*lines, "", f"{device}; {given.samples} samples a step"])
        harness.keep("gpu_training", text, {"device": device, "ways": kept})
    return 0


if __name__ == "__main__":
    sys.exit(main())
