"""Measure image generation on a GPU: Janus-1.3B's sizes, random weights, bf16, 576 codes, guidance 5.

Run `python -m benchmarks.gpu [--batch 1 --batch 16]` (or `make bench-gpu`). Prints seconds and images a
second beside the bandwidth roofline of the same run. Absolute times; nothing else may run on that GPU.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import torch

from benchmarks import harness
from benchmarks.models import decoding_parameters
from janus_plugins.door import plan as read_plan
from janus_plugins.model.compose import compose_plan
from janus_plugins.model.unified import UnifiedModel

OVERRIDES = ["model.language_model.tokenizer={type: bytes}", "model.language_model.weights=null"]


def reference() -> UnifiedModel:
    """Return the reference's sizes with random weights and no downloads."""
    plan = read_plan("janus_1.3b", OVERRIDES)
    return compose_plan(plan, weights=False).to("cuda", torch.bfloat16).eval()


def bandwidth() -> float:
    """Return bytes a second that the GPU reads: the best of a few sums over 4 GB."""
    array = torch.ones(1_000_000_000, device="cuda")
    return array.nbytes / min(seconds(lambda: array.sum()) for _ in range(5))


def seconds(work: object) -> float:
    """Return the wall-clock seconds of a call, the device waited for on both sides."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()  # type: ignore[operator]
    torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> int:
    """Measure each batch size."""
    parser = harness.options(__doc__ or "")
    parser.add_argument("--batch", type=int, action="append", help="images at once (default: 1 and 16)")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("there is no GPU here; run this where torch.cuda.is_available()", file=sys.stderr)
        return 1
    model, speed = reference(), bandwidth()
    steps = model.plan.model.generation["image"].facts.tokens
    roofline = decoding_parameters(model) * 2 * steps / speed
    lines = []
    for batch in given.batch or [1, 16]:
        for way, graph in (("recorded graph", True), ("eager", False)):

            def work(batch: int = batch, graph: bool = graph) -> object:
                return model.generate("a red cube", num_per_prompt=batch, return_codes=True, compile=graph)

            work()
            taken = statistics.median(seconds(work) for _ in range(given.rounds))
            speeds = {"seconds": taken, "images_per_second": batch / taken, "weights_roofline": roofline}
            lines.append({"batch": batch, "way": way, **speeds})
            print(f"batch {batch}, {way}: {taken:.2f} s, {batch / taken:.2f} images/s")
    print(f"roofline of the weights alone: {roofline:.2f} s")
    answer = {
        "device": torch.cuda.get_device_name(),
        "bytes_per_second": speed,
        **harness.machine(),
        "runs": lines,
    }
    harness.RESULTS.mkdir(exist_ok=True)
    (harness.RESULTS / "gpu.json").write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
