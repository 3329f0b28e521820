"""Measure generation in blocks against one code after another: the same model, random weights, one picture.

Both ways make as many codes under guidance 5 with our own loop; what differs is how many passes of the
language model it takes. Run `python -m benchmarks.parallel`. Passes are counted and must be as planned before
a ratio is printed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import harness
from janus_plugins.door import plan as read_plan
from janus_plugins.model.compose import build_tokenizer_for, compose_plan
from janus_plugins.model.unified import UnifiedModel
from janus_plugins.sequence.blocks import Blocks

SIZES = {
    "digits: 0.8M parameters, 16 codes": ([], (4, 1)),
    "26M parameters, 144 codes": (
        [
            "model.language_model.options={vocab_size: 96, hidden_size: 512, intermediate_size: 1408, "
            "num_layers: 8, num_heads: 8, max_positions: 256}",
            "model.generation.image.encoder.options.image_size=48",
        ],
        (16, 1),
    ),
}
"""Changes of the digits model, and what is compared: codes of a block, first blocks made one by one."""


def build(overrides: list[str], parallel: str) -> UnifiedModel:
    """Compose a model without its stages, whose rows would be too short."""
    plan = read_plan("digits", [*overrides, "stages=[]", "evaluation={}", parallel])
    return compose_plan(plan, build_tokenizer_for(plan)).eval()


def counted(model: UnifiedModel) -> tuple[Callable[[], Any], list[int]]:
    """Return a way of making one picture's codes, and the list of how many passes each call took."""
    passes: list[int] = []
    model.language_model.register_forward_hook(lambda *_: passes.append(1))

    def way() -> None:
        passes.clear()
        model.generate("a handwritten two", guidance=5.0, return_codes=True)

    return way, passes


def measure(name: str, rounds: int) -> harness.Comparison | None:
    """Compare blocks, blocks after codes made one by one, and plain decoding at one size."""
    overrides, (block, first) = SIZES[name]
    choices = {
        f"blocks of {block}": f"{{block: {block}}}",
        f"blocks of {block}, the first one by one": f"{{block: {block}, sequential: {first}}}",
        "one by one": "null",
    }
    ways, counts = {}, {}
    for label, parallel in choices.items():
        model = build(overrides, f"model.generation.image.parallel={parallel}")
        made = model.plan.model.generation["image"]
        way, passes = counted(model)
        way()
        wanted = len(Blocks.of(made.parallel).passes(made.facts.tokens))
        if len(passes) != wanted:
            print(f"{label}: {len(passes)} passes, not {wanted}; no ratio is printed", file=sys.stderr)
            return None
        ways[label], counts[f"passes, {label}"] = way, wanted
    return harness.compare(name, ways, rounds, counts)


def main() -> int:
    """Measure every size."""
    given = harness.options(__doc__ or "").parse_args()
    torch.set_num_threads(1)
    made = [measure(name, given.rounds) for name in SIZES]
    done = [one for one in made if one is not None]
    return harness.report("parallel", done, given.force) or int(len(done) < len(made))


if __name__ == "__main__":
    sys.exit(main())
