"""One self-contained HTML file about a run: stages, loss curves, scores, pictures."""

from __future__ import annotations

import base64
import html
import io
import mimetypes
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from janus_plugins.core.outputs import replaced
from janus_plugins.training.metrics import each_step, unreadable, writing_to

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { padding: .3rem .8rem; border-bottom: 1px solid #ddd }
th { text-align: left } td.number { text-align: right; font-variant-numeric: tabular-nums }
figure { margin: 1rem 0 } figcaption { color: #666 } img { max-width: 100%; image-rendering: pixelated }
"""

Cell = str | float | int | None


WIDE = 100
"""Curves that span more than this are drawn on a logarithmic axis."""

POINTS = 2_000
"""Curves of more steps are drawn by means of several, so that the page stays small."""


class StageNumbers:
    """What the report says of a stage, summed up step by step: a long run's lines are never all in memory."""

    def __init__(self) -> None:
        self.steps = array("q")
        self.skipped = 0
        self.seconds = self.tokens = self.waited = self.packing = 0.0
        self.losses: dict[str, tuple[array[int], array[float]]] = {}  # places in `steps`, and values there

    def add(self, step: Mapping[str, Any]) -> None:
        """Take one line of metrics.jsonl."""
        for label, value in step["loss"].items():
            places, values = self.losses.setdefault(label, (array("q"), array("d")))
            if value is not None:
                places.append(len(self.steps))
                values.append(value)
        self.steps.append(step["step"])
        self.skipped += not step["applied"]
        self.seconds += step["seconds"]
        self.tokens += step["tokens"]
        self.waited += step["data_wait"] * step["seconds"]
        self.packing += step["packing"]

    def last_losses(self) -> dict[str, float]:
        """Return the mean of each loss over the last tenth of the stage."""
        tail = len(self.steps) - max(len(self.steps) // 10, 1)
        found = {
            label: values[bisect_left(places, tail) :] for label, (places, values) in self.losses.items()
        }
        return {label: sum(values) / len(values) for label, values in found.items() if values}


def write_report(
    out: Path, evaluation: Mapping[str, Any] | None = None, pictures: Mapping[str, Path] | None = None
) -> Path:
    """Write `out/report.html` from the run's metrics and return its path.

    Args:
        out: the run's folder, with metrics.jsonl.
        evaluation: scores by name; numbers further down (the ceilings, say) become rows of their own, but for
            those under "details".
        pictures: caption -> picture file, embedded in the page.

    Raises:
        CheckpointError: the disk is full or read-only; a report that was there stays.
    """
    stages = by_stage(each_step(out))
    parts = [
        f"<h1>{html.escape(out.resolve().name)}</h1>",
        "<h2>Stages</h2>",
        stage_table(stages, unreadable(out)),
    ]
    parts += [f"<h2>Loss: {html.escape(name)}</h2>{loss_curves(stage)}" for name, stage in stages.items()]
    if evaluation:
        parts += ["<h2>Evaluation</h2>", table(("what", "value"), scores(evaluation))]
    if pictures:
        parts += ["<h2>Pictures</h2>", *(figure(caption, path) for caption, path in pictures.items())]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(out.name)}</title>'
    path = out / "report.html"
    with writing_to(path), replaced(path) as partial:
        partial.write_text(
            f"{head}<style>{STYLE}</style><body>{''.join(parts)}</body></html>", encoding="utf-8"
        )
    return path


def by_stage(steps: Iterable[Mapping[str, Any]]) -> dict[str, StageNumbers]:
    """Return the numbers of each stage, in the order of training."""
    stages: dict[str, StageNumbers] = {}
    for step in steps:
        stages.setdefault(step["stage"], StageNumbers()).add(step)
    return stages


def stage_table(stages: Mapping[str, StageNumbers], bad: Mapping[str, str]) -> str:
    """Return a table with a row for each stage; `bad` tells by stage what could not be read."""
    header = (
        "stage",
        "steps",
        "skipped",
        "seconds",
        "tokens/s",
        "packing",
        "waiting for data",
        "unreadable samples",
        "last losses",
    )
    rows = []
    for name, stage in stages.items():
        number = len(stage.steps)
        last = " ".join(f"{label} {value:.4g}" for label, value in stage.last_losses().items())
        rows.append(
            (name, number, stage.skipped, round(stage.seconds, 1), round(stage.tokens / stage.seconds),
             f"{stage.packing / number:.0%}", f"{stage.waited / stage.seconds:.1%}", bad.get(name, "none"),
             last)
        )  # fmt: skip
    return table(header, rows)


def loss_curves(stage: StageNumbers) -> str:
    """Return the losses of one stage by path as an SVG picture."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.add_subplot()
    together = -(-len(stage.steps) // POINTS)
    for label, (places, values) in sorted(stage.losses.items()):
        steps = [stage.steps[place] for place in places]
        axes.plot(_means(steps, together), _means(values, together), label=label, linewidth=1)
    if axes.lines:
        axes.legend()
    axes.set(xlabel="step" if together == 1 else f"step (means of {together})", ylabel="loss")
    drawn = [value for _, values in stage.losses.values() for value in values if value]
    if drawn and max(drawn) > WIDE * min(drawn):
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "report"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return f"<figure>{text[text.index('<svg') :]}</figure>"


def _means(values: Sequence[float], together: int) -> list[float]:
    parts = [values[start : start + together] for start in range(0, len(values), together)]
    return [sum(part) / len(part) for part in parts]


def scores(evaluation: Mapping[str, Any]) -> list[tuple[Cell, ...]]:
    """Return the rows of an evaluation: its numbers, and those further down under "name: inner"."""
    rows: list[tuple[Cell, ...]] = []
    for name, value in evaluation.items():
        if isinstance(value, int | float):
            rows.append((name, value))
        elif isinstance(value, Mapping) and name != "details":
            rows += [(f"{name}: {row[0]}", *row[1:]) for row in scores(value)]
    return rows


def table(header: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """Return an HTML table."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(value: Cell) -> str:
    if isinstance(value, int | float):
        return f'<td class="number">{value:.4g}</td>' if isinstance(value, float) else f"<td>{value}</td>"
    return f"<td>{html.escape(value or '')}</td>"


def figure(caption: str, path: Path) -> str:
    """Return a picture file as a data URI with its caption."""
    kind = mimetypes.guess_type(path.name)[0] or "image/png"
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    image = f'<img src="data:{kind};base64,{data}" alt="{html.escape(caption)}">'
    return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"
