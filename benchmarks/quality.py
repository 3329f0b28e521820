"""What options for speed cost in quality: the digits model's pictures, judged as its run judges them.

Run `python -m benchmarks.quality runs/digits` after `make demo`. For every way of decoding: the share of
pictures in which a classifier of real scans sees what was asked for, CPU seconds, and runs of the language
model. The same seeds for all; with 400 pictures a share near 94 % has a standard error of 1.2 points.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch

import janus_plugins as jp
from benchmarks import harness

WAYS: dict[str, dict[str, Any]] = {
    "one code a run": {},
    "compiled": {"compile": True},
    "8 bits": {"linears": "int8"},
    "4 bits": {"linears": "int4"},
    "8 bits, compiled": {"linears": "int8", "compile": True},
    "4 bits, compiled": {"linears": "int4", "compile": True},
    "64 rows at once": {"max_rows": 64},
    "8 bits, 64 rows at once": {"linears": "int8", "max_rows": 64},
    "4 bits, 64 rows at once": {"linears": "int4", "max_rows": 64},
    "jacobi, window 4": {"decoding": "jacobi", "window": 4},
    "jacobi, window 8": {"decoding": "jacobi", "window": 8},
    "zigzag, window 3": {"decoding": "zigzag", "window": 3},
    "zigzag, window 2": {"decoding": "zigzag", "window": 2},
    "zigzag, window 1": {"decoding": "zigzag", "window": 1},
}


def judged(model: Any, way: dict[str, Any], number: int) -> tuple[float, float, int]:
    """Return the judged share, CPU seconds, and runs of the language model (of one item, for jacobi)."""
    from janus_plugins.evaluation.runner import evaluate_model

    plain, taken, runs = model.generate, [], []

    def generate(prompts: Any, **options: Any) -> Any:
        counted = () if "compile" in way else (lambda *_: runs.append(1),)  # a hook would be compiled too
        hooks = [model.language_model.register_forward_pre_hook(one) for one in counted]
        started = time.process_time()
        try:
            return plain(prompts, **{**options, "num_per_prompt": number, **way})
        finally:
            taken.append(time.process_time() - started)
            for hook in hooks:
                hook.remove()

    model.generate = generate
    try:
        score = evaluate_model(model, ("generation",))["generation"]
    finally:
        del model.generate
    return score, sum(taken), len(runs)


def main() -> int:
    """Judge every way."""
    parser = harness.options(__doc__ or "")
    parser.add_argument("model", type=Path, help="a trained digits model")
    parser.add_argument("--number", type=int, default=40, help="pictures of each of ten prompts (default 40)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = jp.load(str(given.model))
    lines = ["| way | judged right | CPU s | runs of the language model |", "|---|---|---|---|"]
    kept = []
    for label, way in WAYS.items():
        score, taken, runs = judged(model, way, given.number)
        kept.append({"way": label, "score": score, "cpu_seconds": taken, "runs": runs})
        lines.append(f"| {label} | {score:.1%} | {taken:.2f} | {runs or 'not counted'} |")
    harness.keep("quality", "\n".join(lines), {"pictures": 10 * given.number, "ways": kept})
    return 0


if __name__ == "__main__":
    sys.exit(main())
