"""Measure a training step of stage II's mixture: packed, each head at its own labels, against the usual way.

The usual way has the same modules and the same samples, one padded row each, attention over whole rows,
and both heads at every slot. Run `python -m benchmarks.training`. Losses must be equal before a ratio is
printed.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks import harness
from janus_plugins.data.loader import StepLoader
from janus_plugins.door import plan as read_plan
from janus_plugins.model.compose import build_tokenizer_for, compose_plan
from janus_plugins.model.unified import UnifiedModel, _predicted
from janus_plugins.sequence.batch import Batch, ItemBatch
from janus_plugins.sequence.packing import packed_plan

OVERRIDES = [
    "model.language_model.options.vocab_size=6400",
    "model.generation.image.encoder.options.codebook_size=1024",
]
"""The digits model with heads as wide for its width as the reference's: 50 tokens and 8 codes a channel."""


def padded(batch: Batch) -> Batch:
    """Return the same samples, each in a row of its own, padded to the longest."""
    segments = [segment for group in batch.packed.groups for segment in group]
    width = max(map(len, segments))
    moved = torch.full((batch.ids.numel(),), -1)
    for row, segment in enumerate(segments):
        moved[segment] = row * width + torch.arange(len(segment))
    kept = (moved >= 0).nonzero()[:, 0]

    def lay(values: Tensor, empty: int) -> Tensor:
        flat = values.new_full((len(segments) * width,), empty)
        flat[moved[kept]] = values.reshape(-1)[kept]
        return flat.view(len(segments), width)

    def move(items: ItemBatch) -> ItemBatch:
        if items.absent:
            return items
        at = None if items.predict_at is None else moved[items.predict_at]
        return replace(items, at=moved[items.at], predict_at=at)

    return replace(
        batch,
        ids=lay(batch.ids, 0),
        positions=lay(batch.positions, 0),
        packed=packed_plan([[width]] * len(segments), width),
        text_at=moved[batch.text_at],
        understanding={name: move(items) for name, items in batch.understanding.items()},
        generation={name: move(items) for name, items in batch.generation.items()},
    )


def everywhere(head: Any, hidden: Tensor, at: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of a head's losses at its labels, computed at every slot."""
    wanted = torch.zeros(len(hidden), dtype=torch.int64)
    wanted[at] = targets
    losses: Tensor = head.loss(hidden, wanted)
    return losses[at].sum()


def usual_loss(model: UnifiedModel, batch: Batch) -> Tensor:
    """Return the summed loss of a padded batch, both heads at every slot."""
    embeds, codes = model._embed(batch)
    rows, slots = batch.ids.shape
    hidden = model.language_model(embeds.view(rows, slots, -1), batch.positions, batch.packed).flatten(0, 1)
    total = everywhere(model.language_model.text_head, hidden, batch.text_at, batch.text_targets)
    for name, path in model.generation.items():
        at, targets = _predicted(batch.generation[name], codes[name], hidden.device)
        total = total + everywhere(path.head, hidden, at, targets)
    return total


def main() -> int:
    """Measure forward and backward passes of one step."""
    given = harness.options(__doc__ or "").parse_args()
    torch.set_num_threads(1)
    plan = read_plan("digits", OVERRIDES)
    tokenizer = build_tokenizer_for(plan)
    model = compose_plan(plan, tokenizer)
    stage = next(stage for stage in plan.run.stages if stage.name == "unified")
    for part in (model.understanding["image"].encoder, model.generation["image"].encoder):  # type: ignore[union-attr]
        part.requires_grad_(False)  # type: ignore[union-attr, operator]
    batch = next(iter(StepLoader(plan, tokenizer, stage))).micro[0]
    rows = padded(batch)
    scale = dict.fromkeys(batch.targets(), 1.0)
    losses: dict[str, float] = {}

    def run(label: str) -> None:
        model.zero_grad(set_to_none=True)
        loss = model(batch, scale).loss if label == "ours" else usual_loss(model, rows)
        loss.backward()
        losses[label] = float(loss.detach())

    labels = ("ours", "padded rows, both heads everywhere")
    ways = {label: (lambda label=label: run(label)) for label in labels}
    compared = harness.compare(
        f"stage II mixture, {sum(batch.num_samples.values())} samples", ways, given.rounds
    )
    ours, usual = (losses[label] for label in labels)
    if abs(ours - usual) > 1e-4 * abs(usual):
        print(f"the losses are {ours} and {usual}; no ratio is printed", file=sys.stderr)
        return 1
    compared.counts = {
        "useful tokens": batch.num_tokens,
        "slots, ours": batch.ids.numel(),
        "slots, padded": rows.ids.numel(),
        "head positions, ours": sum(batch.targets().values()),
        "head positions, padded": 2 * rows.ids.numel(),
        "loss, ours": ours,
        "loss, padded": usual,
    }
    return harness.report("training", [compared], given.force)


if __name__ == "__main__":
    sys.exit(main())
