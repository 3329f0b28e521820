"""Where a run's numbers go: a progress bar or plain lines, `metrics.jsonl`, TensorBoard.

Only the main rank writes. On resuming, everything after the checkpoint's step is cut off first, so that no
step appears twice.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from janus_plugins.core.errors import CheckpointError
from janus_plugins.core.outputs import replaced
from janus_plugins.core.schema import StageBlock

Sampler = Callable[[Any], Sequence[tuple[str, np.ndarray]]]
"""Given the model, return named pictures [H, W, 3] (uint8). Called on every rank."""

METRICS_FILE = "metrics.jsonl"
QUARANTINE_FILE = "quarantine.jsonl"
TENSORBOARD = "tensorboard"


class RunConsole(Console):
    """Print what a run says for as long as somebody reads it; the run does not depend on that.

    Ctrl-C ends the `tee` behind a pipe at once, while the run has a checkpoint to save.
    """

    def on_broken_pipe(self) -> None:
        """Say no more, where rich would end the process."""
        self.lost("nobody reads it any more")

    def lost(self, reason: object) -> None:
        """Print nothing from now on, and say why where that can still be read."""
        self.quiet = True
        with suppress(OSError):  # it may have no descriptor
            with Path(os.devnull).open("w") as nowhere:
                # What else is printed, and what Python flushes at its end, must not fail, either.
                os.dup2(nowhere.fileno(), sys.stdout.fileno())
            print(
                f"warning: standard output takes no more lines ({reason}); training goes on, and "
                f"{METRICS_FILE} has its numbers",
                file=sys.stderr,
            )


class Metrics:
    """Write a run's numbers. Use as a context manager; does nothing on ranks other than the main one."""

    def __init__(self, out: Path, *, active: bool, log_every: int, console: Console | None = None) -> None:
        self._out, self._active, self._log_every = out, active, log_every
        self._console = console or RunConsole()
        self._progress: Progress | None = None
        self._bar: Any = None
        self._file: Any = None
        self._writer: Any = None

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            with suppress(OSError):  # its terminal may be gone
                self._progress.stop()
        with suppress(CheckpointError) if error else nullcontext(), writing_to(self._out):
            self._close()

    def _close(self) -> None:
        with ExitStack() as stack:
            for each in (self._file, self._writer):
                if each is not None:
                    stack.callback(each.close)

    def start(self, total: int) -> None:
        """Open the files to go on after step `total`; what they say about later steps is cut off.

        Raises:
            CheckpointError: they cannot be written; as of every method that writes.
        """
        if not self._active:
            return
        from torch.utils.tensorboard import SummaryWriter

        for name in (METRICS_FILE, QUARANTINE_FILE):
            with writing_to(self._out / name):
                cut_after(self._out / name, total)
        with writing_to(self._out / METRICS_FILE):
            self._file = (self._out / METRICS_FILE).open("a", encoding="utf-8")
        with writing_to(self._out / TENSORBOARD):
            self._writer = SummaryWriter(str(self._out / TENSORBOARD), purge_step=total + 1)
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            text = TextColumn("{task.fields[text]}", markup=False)
            self._progress = Progress(*columns, text, console=self._console)
            self._progress.start()

    def say(self, text: str) -> None:
        """Print lines of text."""
        if not self._active:
            return
        try:
            self._console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)
        except OSError as error:  # a full disk, a terminal that is gone
            if not isinstance(self._console, RunConsole):
                raise
            self._console.lost(error)

    def begin_stage(self, stage: StageBlock, done: int) -> None:
        """Show a new stage, `done` steps of which are behind us."""
        if self._progress is not None:
            self._bar = self._progress.add_task(stage.name, total=stage.last_step, completed=done, text="")

    def record(self, values: Mapping[str, Any]) -> None:
        """Write the numbers of one step: a JSON line, TensorBoard scalars, the bar or a line of text."""
        if not self._active:
            return
        with writing_to(self._out / METRICS_FILE):
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()
        with writing_to(self._out / TENSORBOARD):
            for name, value in _scalars(values):
                self._writer.add_scalar(name, value, values["step"])
        if self._progress is not None:
            self._progress.update(self._bar, completed=values["stage_step"], text=summary(values))
        elif values["stage_step"] % self._log_every == 0 or values["stage_step"] == values["stage_steps"]:
            left = f"{values['seconds_left']:.0f} s left"
            self.say(
                f"{values['stage']} {values['stage_step']}/{values['stage_steps']} {summary(values)} {left}"
            )

    @property
    def quarantine_file(self) -> Path:
        """Return where samples are named that could not be read."""
        return self._out / QUARANTINE_FILE

    def quarantine(self, records: Iterable[Mapping[str, Any]], step: int) -> None:
        """Name samples that could not be read in the quarantine file."""
        if self._active:
            path = self.quarantine_file
            with writing_to(path), path.open("a", encoding="utf-8") as stream:
                stream.writelines(json.dumps({"step": step, **record}) + "\n" for record in records)

    def end_stage(self, name: str) -> None:
        """Say how many samples of a stage could not be read, if any."""
        if not self._active or not self.quarantine_file.exists():
            return
        told = unreadable(self._out).get(name)
        if told:
            self.say(f"stage {name}: {told} samples could not be read: see {self.quarantine_file}")

    def pictures(self, pictures: Sequence[tuple[str, np.ndarray]], step: int) -> None:
        """Show sample pictures [H, W, 3] in TensorBoard."""
        if not self._active:
            return
        with writing_to(self._out / TENSORBOARD):
            for name, array in pictures:
                self._writer.add_image(f"samples/{name}", array, step, dataformats="HWC")
            self._writer.flush()


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Name the file of a run that cannot be written inside the block.

    Raises:
        CheckpointError: with the cause and the next step.
    """
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written: {error}; make room and go on with --resume"
        ) from error


def summary(values: Mapping[str, Any]) -> str:
    """Return one step's numbers in a few words."""
    if not values["loss"]:
        return "no targets"
    shown = {label: "nan" if value is None else f"{value:.4g}" for label, value in values["loss"].items()}
    losses = " ".join(f"{label}={value}" for label, value in shown.items())
    state = "" if values["applied"] else " SKIPPED (not finite)"
    return f"{losses} {values['tokens_per_second']:.0f} tok/s{state}"


def _scalars(values: Mapping[str, Any]) -> Iterable[tuple[str, float]]:
    """Yield TensorBoard's names and values; what was not finite (None) leaves a gap in its curve."""
    named = {f"loss/{label}": value for label, value in values["loss"].items()}
    named |= {f"optimizer/{name}": values[name] for name in ("grad_norm", "rate", "skipped_steps")}
    named |= {f"data/{name}": values[name] for name in ("tokens_per_second", "data_wait", "packing")}
    named["data/bad_samples"] = values["bad_samples"]
    return [(name, value) for name, value in named.items() if value is not None]


def cut_after(path: Path, step: int) -> None:
    """Drop the JSON lines of steps later than `step`, and a last line that is broken off or damaged."""
    if not path.exists():
        return
    with (
        path.open(encoding="utf-8", errors="replace") as lines,  # a crash of the machine leaves any bytes
        replaced(path) as partial,
        partial.open("w", encoding="utf-8") as kept,
    ):
        kept.writelines(line.rstrip("\n") + "\n" for line in lines if _is_until(line, step))


def _is_until(line: str, step: int) -> bool:
    try:
        return int(json.loads(line)["step"]) <= step
    except (ValueError, KeyError, TypeError):
        return False


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """Return every recorded step of a run, in order."""
    return list(each_step(out))


def each_step(out: Path) -> Iterator[dict[str, Any]]:
    """Yield every recorded step of a run, in order; of a long run they would take gigabytes together."""
    return _json_lines(out / METRICS_FILE)


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        with path.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def unreadable(out: Path) -> dict[str, str]:
    """Return what a run could not read, by stage: "10 of 470 (eeg 10)"; stages that read all are left out."""
    by_step: dict[int, Counter[str]] = {}
    for record in _json_lines(out / QUARANTINE_FILE):
        by_step.setdefault(record["step"], Counter())[record.get("source", "unknown")] += 1
    bad: dict[str, Counter[str]] = {}
    seen, before = Counter[str](), 0
    for place, row in enumerate(each_step(out)):
        total = row["samples"] + row["bad_samples"]
        if place == 0 and row["step"] > 1:  # the stages before were trained into another folder
            before = total
        seen[row["stage"]] += total - before
        before = total
        if row["step"] in by_step:
            bad.setdefault(row["stage"], Counter()).update(by_step[row["step"]])
    return {stage: f"{found.total()} of {seen[stage]} ({_listed(found)})" for stage, found in bad.items()}


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counts.items())
