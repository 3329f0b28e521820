"""How cost grows: generation with codes and batch, training with a row's length, reading with a set's size.

Run `python -m benchmarks.growth [--quick]`. CPU seconds on one thread; the sizes take turns.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks import harness, models
from janus_plugins.core.runfile import load_run_text
from janus_plugins.core.wiring import resolve
from janus_plugins.data.loader import StepLoader
from janus_plugins.door import plan as read_plan
from janus_plugins.model.compose import build_tokenizer_for, compose_plan
from janus_plugins.model.unified import UnifiedModel

ROWS = """
name: rows
model:
  language_model:
    use: llama
    options: {{vocab_size: 300, hidden_size: 32, intermediate_size: 64, num_layers: 1, num_heads: 2,
              max_positions: 128}}
    tokenizer: {{type: bytes}}
data:
  words: {{use: hf-dataset, task: text, options: {{path: {file}, columns: {{text: "{{text}}"}}}}}}
stages:
  - {{name: one, learn: {{language_model: 1.0e-3}}, mix: {{text: 1}}, steps: 4, batch: 32, max_length: 64}}
"""


def codes(quick: bool) -> harness.Curve:
    """Time one image of ever more codes, at 7.5M parameters, to the end of the positions."""
    sides = (3, 6, 12) if quick else (3, 6, 12, 24, 48, 63)

    def generate(model: UnifiedModel) -> Any:
        return model.generate("a red cube", guidance=5.0, temperature=0, return_codes=True)

    made = {side * side: models.ours("7.5M", side) for side in sides}
    work = {size: (lambda model=model: generate(model)) for size, model in made.items()}
    return harness.curve("one image, 7.5M parameters", "codes", "code", work, 1 if quick else 2)


def batch(quick: bool) -> harness.Curve:
    """Time ever more images at once, at 7.5M parameters and 144 codes."""
    model = models.ours("7.5M")
    sizes = (1, 2) if quick else (1, 2, 4, 8, 16, 32)

    def generate(number: int) -> Any:
        return model.generate("a red cube", num_per_prompt=number, temperature=0, return_codes=True)

    work = {size: (lambda size=size: generate(size)) for size in sizes}
    return harness.curve("images at once, 144 codes", "images", "image", work, 1 if quick else 2)


def rows(quick: bool) -> harness.Curve:
    """Time a training step of the digits model's stage II with its samples in ever longer rows."""
    work = {}
    for length in (64, 256) if quick else (64, 128, 256, 512, 1024, 2048):
        longest = f"model.language_model.options.max_positions={max(256, length)}"
        plan = read_plan("digits", [f"stages.unified.max_length={length}", longest])
        tokenizer = build_tokenizer_for(plan)
        stage = next(stage for stage in plan.run.stages if stage.name == "unified")
        model = compose_plan(plan, tokenizer)
        given = next(iter(StepLoader(plan, tokenizer, stage))).micro[0]
        scale = dict.fromkeys(given.targets(), 1.0)
        work[length] = lambda model=model, given=given, scale=scale: model(given, scale).loss.backward()
    return harness.curve("training step, 96 samples", "slots of a row", "slot", work, 1 if quick else 3)


def data(quick: bool, folder: Path) -> harness.Curve:
    """Time opening a Parquet set of ever more rows, in a new order, to the first step."""
    work = {}
    for number in (1_000, 10_000) if quick else (1_000, 10_000, 100_000, 1_000_000):
        file = folder / f"{number}.parquet"
        pq.write_table(pa.table({"text": [f"row {index}" for index in range(number)]}), file)
        plan = resolve(load_run_text(ROWS.format(file=file), "rows.yaml"))
        tokenizer = build_tokenizer_for(plan)
        work[number] = lambda plan=plan, tokenizer=tokenizer: next(
            iter(StepLoader(plan, tokenizer, plan.run.stages[0]))
        )
    return harness.curve("data set to first step", "rows", "row", work, 1 if quick else 2)


def main() -> int:
    """Measure every curve."""
    parser = harness.options(__doc__ or "")
    parser.add_argument("--quick", action="store_true", help="small sizes only, nothing is kept")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        curves = [codes(quick), batch(quick), rows(quick), data(quick, Path(folder))]
    text = "\n".join(one.markdown() for one in curves)
    if quick:
        print(text)
        return 0
    harness.keep("growth", text, {"curves": [asdict(one) for one in curves]})
    harness.plot("growth", curves)
    return 0


if __name__ == "__main__":
    sys.exit(main())
