"""Pictures of what a model makes: a grid for the report, and small samples while it trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from janus_plugins.core.outputs import replaced
from janus_plugins.core.plan import RunPlan
from janus_plugins.core.samples import Item
from janus_plugins.data.sources import open_source, readable
from janus_plugins.training.metrics import writing_to

if TYPE_CHECKING:
    from janus_plugins.evaluation.ranks import SharedModel
    from janus_plugins.model.unified import UnifiedModel

COLUMNS = 10
SCALE = 3
GAP = 2


def prompts_of(plan: RunPlan, modality: str, limit: int = 10) -> tuple[str, ...]:
    """Return the first distinct prompts of the run's generation sources, without those that show items.

    Samples that cannot be read are passed over, as in training.
    """
    found: dict[str, None] = {}
    for data in plan.data.values():
        if data.block.task != "generation" or modality not in data.facts.generation:
            continue
        source = open_source(data.part)
        for sample in readable(source, 500):
            asked = [part for turn in sample.turns if turn.role == "user" for part in turn.parts]
            texts = [part for part in asked if not isinstance(part, Item)]
            if len(texts) < len(asked):
                continue
            found["".join(texts)] = None
            if len(found) == limit:
                return tuple(sorted(found))
    return tuple(sorted(found))


def sampler(plan: RunPlan) -> Callable[[UnifiedModel], list[tuple[str, np.ndarray]]] | None:
    """Return what draws a few images while a model trains, or None where it makes none."""
    if "image" not in plan.model.generation or not plan.run.engine.sample_every:
        return None
    prompts, options = list(prompts_of(plan, "image", 4)), _guidance(plan)

    def draw(model: UnifiedModel) -> list[tuple[str, np.ndarray]]:
        made = model.generate(prompts, items={}, **options)
        return [(one.prompt, np.asarray(one.artefact.convert("RGB"))) for one in made]

    return draw if prompts else None


def picture_grids(model: UnifiedModel | SharedModel, out: Path) -> dict[str, Path]:
    """Write samples.png: a row a prompt, `COLUMNS` images each. Returns titles and paths."""
    if "image" not in model.plan.model.generation:
        return {}
    prompts = list(prompts_of(model.plan, "image"))
    if not prompts:
        return {}
    options = _guidance(model.plan)
    made = model.generate(prompts, items={}, num_per_prompt=COLUMNS, **options)
    path = out / "samples.png"
    with writing_to(path), replaced(path) as partial:
        _grid([one.artefact for one in made], COLUMNS).save(partial, format="PNG")
    title = f"generated, a row a prompt: {'; '.join(prompts)}"
    return {title: path}


def _guidance(plan: RunPlan) -> dict[str, Any]:
    """Return how the run's own evaluation generates, where it says so."""
    return next((dict(test.facts.sampling) for test in plan.evaluation.values() if test.facts.sampling), {})


def _grid(images: list[Any], columns: int) -> Any:
    from PIL import Image

    width, height = (side * SCALE for side in images[0].size)
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + GAP), rows * (height + GAP)), (32, 32, 32))
    for position, image in enumerate(images):
        row, column = divmod(position, columns)
        big = image.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(big, (column * (width + GAP), row * (height + GAP)))
    return sheet
