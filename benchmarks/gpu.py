"""Measure image generation on a GPU: Janus-1.3B's sizes, random weights, bf16, 576 codes, guidance 5.

Run `python -m benchmarks.gpu [--batch 1] [--batch 16]` (or `make bench-gpu`): one image by ours, by
transformers' `generate` and by the official loop, on the same weights, and a batch by ours. Greedy codes of
one image must be equal in fp32 before a ratio is printed; the times are of bf16, where near ties part. The
other two are kept from cuDNN's attention, which would plan anew for every length of their caches. Absolute
times count: nothing else may run on that GPU. `--device cpu --set ...` tries the command on a smaller model,
and keeps nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks import harness, models
from benchmarks.generation import GUIDANCE, PROMPT, official_loop, transformers_way
from janus_plugins.core.devices import without_plans
from janus_plugins.door import plan as read_plan
from janus_plugins.inference.graph import GraphStep
from janus_plugins.inference.prompts import item_prompt
from janus_plugins.model.compose import compose_plan
from janus_plugins.model.unified import UnifiedModel
from tests.reference.cut import NO_DOWNLOADS

OVERRIDES = (*NO_DOWNLOADS, "model.language_model.options.init_std=0.04")
"""With wide weights greedy codes differ from step to step."""

OURS, EAGER = "ours, one graph a step", "ours, eager"
THEIRS, OFFICIAL = "transformers generate", "official-style loop"
WAYS = (OURS, EAGER, THEIRS, OFFICIAL)


def reference(device: str, overrides: list[str]) -> UnifiedModel:
    """Return the reference's sizes with random weights that bf16 holds."""
    plan = read_plan("janus_1.3b", [*OVERRIDES, *overrides])
    return models.decided(compose_plan(plan, weights=False, device=device).eval()).to(device, torch.bfloat16)


def waited_for(device: str, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Return the same work, without cuDNN's plans and the device waited for."""

    def whole() -> Tensor:
        with without_plans(torch.device(device)):
            made = work()
        if device == "cuda":
            torch.cuda.synchronize()
        return made

    return whole


def bandwidth(device: str) -> float:
    """Return bytes a second that the device reads: the best of a few sums over 4 GB."""
    array = torch.ones(1_000_000_000 if device == "cuda" else 100_000_000, device=device)
    work = waited_for(device, array.sum)
    return float(array.nbytes / min(harness.compare("sum", {"sum": work}, clock="wall").wall["sum"]))


def ours(model: UnifiedModel, device: str, graph: bool, images: int = 1) -> Callable[[], Tensor]:
    """Return our way of making so many images of one prompt."""
    options: dict[str, Any] = {"guidance": GUIDANCE, "temperature": 0, "return_codes": True}

    def work() -> Tensor:
        made = model.generate(PROMPT, num_per_prompt=images, compile=graph, **options)
        assert isinstance(made, Tensor)
        return made

    return waited_for(device, work)


def pieces(device: str, work: Callable[[], Tensor], steps: int) -> dict[str, float]:
    """Return what one run takes before its first recorded step, and for each of them."""
    marks: list[float] = []
    run = GraphStep.run

    def timed(self: GraphStep, *given: Any) -> Tensor:
        marks.append(_now(device))
        made = run(self, *given)
        marks.append(_now(device))
        return made

    begun = _now(device)
    with patch.object(GraphStep, "run", timed):
        work()
    return {
        "seconds before the steps": marks[0] - begun,
        "us a step": (marks[-1] - marks[-2]) / (steps - 1) * 1e6,
    }


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def one_image(model: UnifiedModel, given: argparse.Namespace) -> tuple[list[harness.Comparison], bool]:
    """Compare the ways of making one image; also say whether their codes were equal in fp32."""
    steps = model.plan.model.generation["image"].facts.tokens
    foreign = models.theirs(model, torch.bfloat16).to(given.device)
    prompt = item_prompt(model, "image", PROMPT, [0])
    rows = (list(prompt.conditional), list(prompt.unconditional))
    known: dict[str, Callable[[], Tensor]] = {
        OURS: ours(model, given.device, True),
        EAGER: ours(model, given.device, False),
        THEIRS: waited_for(given.device, lambda: transformers_way(foreign, model, rows[0])),
        OFFICIAL: waited_for(given.device, lambda: official_loop(foreign, rows, steps)),
    }
    ways = {name: way for name, way in known.items() if name in (given.way or WAYS) or name == OURS}
    model.float()
    foreign.float()
    ways[OURS]()  # compiles
    with harness.turn():
        exact = {name: way().cpu() for name, way in ways.items()}
    first = exact[OURS]
    equal = all(torch.equal(codes, first) for codes in exact.values())
    if not equal:
        told = {name: float((codes == first).float().mean()) for name, codes in exact.items()}
        print(f"the codes are not equal in fp32 ({told}); no ratio is printed", file=sys.stderr)
        ways = {OURS: ways[OURS]}
    model.bfloat16()
    foreign.bfloat16()
    ways[OURS]()
    speed = bandwidth(given.device)
    least = models.decoding_parameters(model) * 2 * steps / speed
    alone = harness.compare(f"1 image, {steps} codes, bf16", {OURS: ways[OURS]}, given.rounds, clock="wall")
    alone.counts = {
        "parameters read by a step": models.decoding_parameters(model),
        "bytes/s of the device": speed,
        "different codes in fp32": first.unique().numel(),
        "seconds by the bandwidth roofline": least,
        "share of the roofline": least / alone.median(OURS),
        **pieces(given.device, ways[OURS], steps),
    }
    print(harness.markdown(alone), flush=True)
    paired = harness.compare("the same, by turns", ways, given.paired, clock="wall", warm=False)
    return [alone, paired], equal


def batch(model: UnifiedModel, given: argparse.Namespace, images: int) -> harness.Comparison:
    """Time a batch of images by ours."""
    steps = model.plan.model.generation["image"].facts.tokens
    way = ours(model, given.device, True, images)
    way()  # compiles
    made = harness.compare(
        f"{images} images, {steps} codes each, bf16", {OURS: way}, given.rounds, clock="wall"
    )
    made.counts = {"images/s": images / made.median(OURS), **pieces(given.device, way, steps)}
    return made


def main() -> int:
    """Measure one image by every way, and batches by ours."""
    parser = harness.options(__doc__ or "")
    parser.add_argument("--batch", type=int, action="append", help="images at once (default: 1 and 16)")
    parser.add_argument("--paired", type=int, default=2, help="rounds of all ways by turns (default 2)")
    parser.add_argument("--way", action="append", choices=WAYS, help="default: all")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: to try the command")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change the reference"
    )
    parser.add_argument(
        "--found",
        type=Path,
        metavar="FILE",
        help="layers.json of a search: run kernels as it found best",
    )
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("there is no GPU here; run this where torch.cuda.is_available()", file=sys.stderr)
        return 1
    with ExitStack() as stack:
        if given.found is not None:
            from benchmarks.layers import best_found  # which takes Triton

            stack.enter_context(best_found(given.found))
        return measure(given)


def measure(given: argparse.Namespace) -> int:
    """Measure as asked."""
    model = reference(given.device, given.set)
    made: list[harness.Comparison] = []
    equal = True
    for images in given.batch or [1, 16]:
        if images == 1:
            some, equal = one_image(model, given)
            made += some
        else:
            made.append(batch(model, given, images))
    if given.device == "cpu":
        print("\n".join(harness.markdown(one) for one in made))
        return 0
    made[0].counts["device"] = torch.cuda.get_device_name()
    if given.found is not None:
        made[0].counts["kernels"] = f"as found in {given.found.name}"
    refused = harness.report("gpu" if 1 in (given.batch or [1]) else "gpu_batch", made, given.force)
    return 0 if equal and not refused else 1


if __name__ == "__main__":
    sys.exit(main())
