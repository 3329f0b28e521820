"""Tables of the command line. They print what other rooms answered and decide nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from janus_plugins.core.plugins import PluginReport
    from janus_plugins.model.explain import Explanation, StageRow
    from janus_plugins.model.training_plan import StagePlan, TrainingPlan


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table  # here: listing plugins does without

    table = Table(title=title or None, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left")
    return table


def _console() -> Console:
    """Return a console that prints names and shapes as they are: their brackets are no markup."""
    from rich.console import Console

    console = Console(markup=False, emoji=False)
    return console if console.is_terminal else Console(width=200, markup=False, emoji=False)


def plugins_as_data(reports: Iterable[PluginReport]) -> list[dict[str, Any]]:
    """Return plugin reports as plain data, a plugin each."""
    return [
        {
            "distribution": report.distribution,
            "entry": report.entry,
            "version": report.version,
            "status": report.status,
            "error": report.error,
            "note": report.note,
            "load_seconds": round(report.load_seconds, 4),
            "components": [
                {"kind": str(kind), "name": name, "summary": summary, "status": status}
                for kind, name, summary, status in report.components
            ],
        }
        for report in reports
    ]


def print_plugins(reports: Iterable[PluginReport]) -> None:
    """Print a row a component, and a row a plugin that offers none; what went wrong, where something did.

    In plain columns: rich takes a quarter of a second over a few hundred rows.
    """
    rows = [("kind", "component", "distribution", "version", "status", "load", "summary")]
    for report in sorted(reports, key=lambda one: (one.distribution, one.entry)):
        load = f"{report.load_seconds * 1000:.0f} ms"
        who = (report.distribution, report.version)
        reason = f"entry {report.entry!r}" + (f": {report.error}" if report.error else "")
        if not report.components:
            rows.append(("-", "-", *who, report.status, load, reason))
        for kind, name, summary, status in sorted(report.components):
            shown, text = (status, summary) if report.status == "ok" else (report.status, reason)
            rows.append((str(kind), name, *who, shown, load, text))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())


def print_explanation(explanation: Explanation) -> None:
    """Print parts, stages and memory."""
    console = _console()
    table = _table(f"{explanation.name}: parts", "part", "component", "from", "shapes", ">parameters")
    for part in explanation.parts:
        table.add_row(part.address, part.component, part.distribution, part.shapes, f"{part.parameters:,}")
    table.add_section()
    table.add_row("total", "", "", "", f"{explanation.total:,}")
    for part in explanation.published_only:
        table.add_row(part.address, part.component, part.distribution, part.shapes, f"{part.parameters:,}")
    if explanation.published_only:
        table.add_row("total of the published file", "", "", "", f"{explanation.published_total:,}")
    console.print(table)
    for stage in explanation.stages:
        _print_stage(console, stage)
    if explanation.plan.stages:
        _print_plan(console, explanation.plan)


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


def _print_plan(console: Console, plan: TrainingPlan) -> None:
    """Print what training takes on the given machines."""
    on = plan.machines
    title = (
        f"training on {on.gpus} GPUs of {on.memory:g} GiB and {on.tflops:g} TFLOP/s at an MFU of {on.mfu:.0%}"
    )
    console.print(f"\n{title}", style="bold", highlight=False)
    texts = f"texts taken to be {on.item_text} tokens beside an item and {on.text} alone"
    console.print(f"{texts}; days in brackets: if 'batch' counted full packed rows", highlight=False)
    table = _table("", "stage", "ZeRO", "rows a GPU", ">GiB a GPU", ">tokens a step", ">samples", ">steps",
                   "TFLOP a sample", ">days")  # fmt: skip
    for stage in plan.stages:
        zero, rows, used = _fit_cells(stage)
        costs = ", ".join(f"{task} {value / 1e12:.2f}" for task, value in stage.flops.items())
        sizes = [f"{number:,}" for number in (stage.tokens_per_step, stage.batch, stage.steps)]
        table.add_row(stage.name, zero, rows, used, *sizes, costs, _days(stage.days, stage.days_of_rows))
    table.add_section()
    table.add_row(*["all", *[""] * 7, _days(plan.days, plan.days_of_rows)])
    console.print(table)
    if plan.estimated:
        console.print(f"estimated as 2 x parameters x tokens: {', '.join(plan.estimated)}", highlight=False)
    _print_published(console, plan)


def _days(samples: float, rows: float) -> str:
    return f"{samples:.2g} ({rows:.2g})"


def _fit_cells(stage: StagePlan) -> tuple[str, str, str]:
    """Return the ZeRO stage, the rows and the memory of the way that is chosen for a stage."""
    fit = stage.choice
    if fit is None or fit.accumulate is None:
        return "none fits", f"{stage.rows_per_gpu}", "-"
    rows = math.ceil(stage.rows_per_gpu / fit.accumulate)
    told = f"{rows} of {fit.rows} that fit" + (f", {fit.accumulate} times" if fit.accumulate > 1 else "")
    return str(fit.zero), told, f"{fit.fixed + rows * fit.row:.1f}"


def _print_published(console: Console, plan: TrainingPlan) -> None:
    known, mfu = plan.published, plan.published_mfu
    if known is None or mfu is None:
        return
    console.print(
        f"published: {known.days:g} days on {known.gpus} x {known.gpu} ({known.source}). That is an MFU of "
        f"{mfu[0]:.1%} if 'batch' counts samples of these lengths, of {mfu[1]:.1%} if it counts full rows",
        highlight=False,
    )


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
