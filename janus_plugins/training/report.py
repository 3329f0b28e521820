"""One self-contained HTML file about a run: stages, loss curves, scores, pictures."""

from __future__ import annotations

import base64
import html
import io
import mimetypes
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from janus_plugins.core.outputs import replaced
from janus_plugins.training.metrics import read_metrics, unreadable, writing_to

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
    steps = read_metrics(out)
    parts = [
        f"<h1>{html.escape(out.resolve().name)}</h1>",
        "<h2>Stages</h2>",
        stage_table(steps, unreadable(out)),
    ]
    parts += [f"<h2>Loss: {html.escape(name)}</h2>{loss_curves(rows)}" for name, rows in by_stage(steps)]
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


def by_stage(steps: Iterable[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Return the recorded steps of each stage, in the order of training."""
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for step in steps:
        stages.setdefault(step["stage"], []).append(step)
    return list(stages.items())


def stage_table(steps: Iterable[Mapping[str, Any]], bad: Mapping[str, str]) -> str:
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
    for name, recorded in by_stage(steps):
        seconds = sum(step["seconds"] for step in recorded)
        tokens = sum(step["tokens"] for step in recorded)
        waited = sum(step["data_wait"] * step["seconds"] for step in recorded)
        packing = sum(step["packing"] for step in recorded) / len(recorded)
        last = " ".join(f"{label} {value:.4g}" for label, value in last_losses(recorded).items())
        rows.append(
            (name, len(recorded), sum(not step["applied"] for step in recorded), round(seconds, 1),
             round(tokens / seconds), f"{packing:.0%}", f"{waited / seconds:.1%}", bad.get(name, "none"),
             last)
        )  # fmt: skip
    return table(header, rows)


def last_losses(recorded: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean of each loss over the last tenth of a stage."""
    tail = recorded[-max(len(recorded) // 10, 1) :]
    values: dict[str, list[float]] = {}
    for step in tail:
        for label, value in step["loss"].items():
            if value is not None:
                values.setdefault(label, []).append(value)
    return {label: sum(found) / len(found) for label, found in values.items()}


def loss_curves(recorded: Sequence[Mapping[str, Any]]) -> str:
    """Return the losses of one stage by path as an SVG picture."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for label in sorted({label for step in recorded for label in step["loss"]}):
        points = [(step["step"], step["loss"].get(label)) for step in recorded]
        drawn = [(step, value) for step, value in points if value is not None]
        axes.plot([step for step, _ in drawn], [value for _, value in drawn], label=label, linewidth=1)
    if axes.lines:
        axes.legend()
    axes.set(xlabel="step", ylabel="loss")
    values = [value for step in recorded for value in step["loss"].values() if value]
    if values and max(values) > WIDE * min(values):
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "report"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return f"<figure>{text[text.index('<svg') :]}</figure>"


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
