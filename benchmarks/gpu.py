"""Measure image generation on a GPU: Janus-1.3B's sizes, random weights, bf16, 576 codes, guidance 5.

Run `python -m benchmarks.gpu [--batch 16]` (or `make bench-gpu`): one image by ours, by transformers'
`generate` and by the official loop, on the same weights, then a batch by ours. Greedy codes of the first
must be equal in fp32 before a ratio is printed; the times are of bf16, where near ties part. Absolute times
count: nothing else may run on that GPU. `--device cpu --set ...` tries the command on a smaller model, and
keeps nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import harness, models
from benchmarks.generation import GUIDANCE, PROMPT, official_loop, transformers_way
from janus_plugins.door import plan as read_plan
from janus_plugins.inference.prompts import item_prompt
from janus_plugins.model.compose import compose_plan
from janus_plugins.model.unified import UnifiedModel
from tests.reference.cut import NO_DOWNLOADS

OVERRIDES = (*NO_DOWNLOADS, "model.language_model.options.init_std=0.04")
"""With wide weights greedy codes differ from step to step."""


def reference(device: str, overrides: list[str]) -> UnifiedModel:
    """Return the reference's sizes with random weights that bf16 holds."""
    plan = read_plan("janus_1.3b", [*OVERRIDES, *overrides])
    return models.decided(compose_plan(plan, weights=False).eval()).to(device, torch.bfloat16)


def waited_for(device: str, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Return the same work, the device waited for."""

    def whole() -> Tensor:
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


def main() -> int:
    """Measure one image by every way, and batches by ours."""
    parser = harness.options(__doc__ or "")
    parser.add_argument("--batch", type=int, action="append", help="images at once (default: 16)")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: to try the command")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change the reference"
    )
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("there is no GPU here; run this where torch.cuda.is_available()", file=sys.stderr)
        return 1
    model = reference(given.device, given.set)
    foreign = models.theirs(model, torch.bfloat16).to(given.device)
    prompt = item_prompt(model, "image", PROMPT, [0])
    rows = (list(prompt.conditional), list(prompt.unconditional))
    steps = model.plan.model.generation["image"].facts.tokens

    def by(graph: bool, images: int = 1) -> Callable[[], Tensor]:
        options: dict[str, Any] = {"guidance": GUIDANCE, "temperature": 0, "return_codes": True}

        def work() -> Tensor:
            made = model.generate(PROMPT, num_per_prompt=images, compile=graph, **options)
            assert isinstance(made, Tensor)
            return made

        return waited_for(given.device, work)

    ways = {
        "ours, one graph a step": by(True),
        "ours, eager": by(False),
        "transformers generate": waited_for(given.device, lambda: transformers_way(foreign, model, rows[0])),
        "official-style loop": waited_for(given.device, lambda: official_loop(foreign, rows, steps)),
    }
    model.float()
    foreign.float()
    exact = {label: way() for label, way in ways.items()}
    first = exact["ours, eager"]
    if not all(torch.equal(codes, first) for codes in exact.values()):
        told = {label: float((codes == first).float().mean()) for label, codes in exact.items()}
        print(f"the codes are not equal in fp32 ({told}); no ratio is printed", file=sys.stderr)
        return 1
    model.bfloat16()
    foreign.bfloat16()
    speed = bandwidth(given.device)
    least = models.decoding_parameters(model) * 2 * steps / speed
    compared = harness.compare(f"1 image, {steps} codes, bf16", ways, given.rounds, clock="wall")
    taken = compared.median("ours, one graph a step")
    compared.counts = {
        "device": torch.cuda.get_device_name() if given.device == "cuda" else "cpu",
        "parameters read by a step": models.decoding_parameters(model),
        "bytes/s of the device": speed,
        "different codes in fp32": first.unique().numel(),
        "seconds by the bandwidth roofline": least,
        "share of the roofline": least / taken,
    }
    batches = []
    for images in given.batch or [16]:
        made = harness.compare(
            f"{images} images, {steps} codes each, bf16",
            {"ours, one graph a step": by(True, images), "ours, eager": by(False, images)},
            given.rounds,
            clock="wall",
        )
        made.counts = {"images/s": images / made.median("ours, one graph a step")}
        batches.append(made)
    if given.device == "cpu":
        print("\n".join(harness.markdown(one) for one in (compared, *batches)))
        return 0
    return harness.report("gpu", [compared, *batches], given.force)


if __name__ == "__main__":
    sys.exit(main())
