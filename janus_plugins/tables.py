"""Tables of the command line. They print what other rooms answered and decide nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from janus_plugins.core.plugins import PluginReport
    from janus_plugins.model.explain import Explanation, StageRow


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title or None, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left")
    return table


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=200)


def plugins_as_data(reports: Iterable[PluginReport]) -> list[dict[str, Any]]:
    """Return plugin reports as plain data, a plugin each."""
    return [
        {
            "distribution": report.distribution,
            "entry": report.entry,
            "version": report.version,
            "status": report.status,
            "error": report.error,
            "load_seconds": round(report.load_seconds, 4),
            "components": [
                {"kind": str(kind), "name": name, "summary": summary, "status": status}
                for kind, name, summary, status in report.components
            ],
        }
        for report in reports
    ]


def print_plugins(reports: Iterable[PluginReport]) -> None:
    """Print a row a component, and a row a plugin that offers none."""
    table = _table(
        "installed components", "kind", "component", "distribution", "version", "status", ">load", "summary"
    )
    for report in sorted(reports, key=lambda one: (one.distribution, one.entry)):
        load = f"{report.load_seconds * 1000:.0f} ms"
        who = (report.distribution, report.version)
        if not report.components:
            table.add_row("-", "-", *who, f"{report.status}: {report.error}", load, f"entry {report.entry!r}")
        for kind, name, summary, status in sorted(report.components):
            shown = status if report.status == "ok" else report.status
            table.add_row(str(kind), name, *who, shown, load, summary)
    _console().print(table)


def print_explanation(explanation: Explanation) -> None:
    """Print parts, stages and memory."""
    console = _console()
    table = _table(f"{explanation.name}: parts", "part", "component", "from", "shapes", ">parameters")
    for part in explanation.parts:
        table.add_row(part.address, part.component, part.distribution, part.shapes, f"{part.parameters:,}")
    table.add_section()
    table.add_row("total", "", "", "", f"{explanation.total:,}")
    console.print(table)
    for stage in explanation.stages:
        _print_stage(console, stage)


def _print_stage(console: Console, stage: StageRow) -> None:
    title = f"stage {stage.name}: {stage.steps:,} steps of {stage.batch} samples"
    title += f", {stage.total_trainable:,} trainable"
    console.print(f"\n{title}", style="bold", highlight=False)
    table = _table("", "learns", ">parameters")
    for address, count in stage.trainable.items():
        table.add_row(address, f"{count:,}")
    console.print(table)
    slots = ", ".join(f"{path} {count}" for path, count in stage.tokens_per_sample.items())
    console.print(f"slots an item: {slots}; about {stage.tokens_per_step:,} item slots a step, texts on top")
    console.print("estimated GiB of one GPU, for micro-batches of one full row:", highlight=False)
    memory = _table("", "", *[f">{name}" for name in next(iter(stage.memory.values()))])
    for zero, by_world in stage.memory.items():
        memory.add_row(zero, *[f"{gib:,.3g}" for gib in by_world.values()])
    console.print(memory)


def print_evaluation(result: Mapping[str, Any]) -> None:
    """Print scores, ceilings and seconds of an evaluation."""
    table = _table("evaluation", "what", ">result")
    for name, value in _flat(result):
        table.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
    _console().print(table)


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
