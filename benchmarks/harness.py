"""Compare ways of doing the same work, in one process, round by round.

A machine's speed drifts by more than what is to be measured. The ways therefore take turns, A B C, A B C
..., each round gives one ratio, and the median of those counts. A measurement on a machine that others
took time from is refused.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

MOST_STOLEN = 0.05
"""Share of the machine's time that its host may give to others before figures are refused."""

RESULTS = Path(__file__).parent / "results"


@dataclass
class Comparison:
    """Hold what several ways of doing the same took, in seconds of CPU and of wall-clock time.

    Attributes:
        name: what was done.
        ours: name of the way that the ratios are of.
        cpu: seconds of CPU time a round, by way.
        wall: seconds of wall-clock time a round, by way.
        counts: what does not depend on the machine.
        stolen: share of the machine's time that its host gave to others meanwhile.
        waited: share of the wall-clock time in which this process did not run.
        clock: which of the two times ratios are of.
    """

    name: str
    ours: str
    cpu: dict[str, list[float]] = field(default_factory=dict)
    wall: dict[str, list[float]] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    stolen: float = 0.0
    waited: float = 0.0
    clock: Literal["cpu", "wall"] = "cpu"

    @property
    def times(self) -> dict[str, list[float]]:
        """Return what ratios are of: seconds a round, by way."""
        return self.cpu if self.clock == "cpu" else self.wall

    def median(self, way: str) -> float:
        """Return the median seconds of a way."""
        return statistics.median(self.times[way])

    def ratios(self, other: str) -> list[float]:
        """Return how many times the time of ours another way took, round by round."""
        return [theirs / mine for theirs, mine in zip(self.times[other], self.times[self.ours], strict=True)]


def compare(
    name: str,
    ways: Mapping[str, Callable[[], object]],
    rounds: int = 5,
    counts: Mapping[str, Any] | None = None,
    clock: Literal["cpu", "wall"] = "cpu",
    warm: bool = True,
) -> Comparison:
    """Run the ways in turn, `rounds` times after one that does not count; the first way is ours.

    Where every way has run just before, it need not be `warm` first.

    A way that has a device work for it returns once the device has done so.
    """
    with turn():
        made = Comparison(name, next(iter(ways)), counts=dict(counts or {}), clock=clock)
        for way in ways.values() if warm else ():
            way()
        return _compared(ways, rounds, made)


def _compared(ways: Mapping[str, Callable[[], object]], rounds: int, made: Comparison) -> Comparison:
    before, started, ran = ticks(), time.perf_counter(), time.process_time()
    for _ in range(rounds):
        for label, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            way()
            made.cpu.setdefault(label, []).append(time.process_time() - cpu)
            made.wall.setdefault(label, []).append(time.perf_counter() - wall)
    after = ticks()
    made.stolen = (after[0] - before[0]) / max(1, after[1] - before[1])
    made.waited = max(0.0, 1 - (time.process_time() - ran) / (time.perf_counter() - started))
    return made


@contextmanager
def turn() -> Iterator[None]:
    """Wait until no other benchmark on this machine is at it: what they do besides may overlap."""
    with (Path(tempfile.gettempdir()) / "janus-plugins-benchmark.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def ticks() -> tuple[int, int]:
    """Return (stolen, all) ticks of the machine since its start; (0, 0) where it does not say."""
    for line in _lines("/proc/stat")[:1]:
        ticks = [int(value) for value in line.split()[1:9]]
        return ticks[7], sum(ticks)
    return 0, 0


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def reading(num_bytes: int) -> Callable[[], object]:
    """Return work that reads so many bytes from memory and does nothing else with them.

    The product of long rows with a vector reads several places in turn, which is often quicker than a sum.
    """
    rows = torch.ones(4_000, 25_000)
    vector = torch.ones(25_000)

    def read() -> None:
        for first in range(0, num_bytes, rows.nbytes):
            left = (num_bytes - first) * len(rows) // rows.nbytes
            rows[:left].mv(vector)

    return read


def markdown(made: Comparison) -> str:
    """Return a Markdown table: medians of CPU seconds, and of the ratios with their range."""
    lines = [
        f"### {made.name}",
        "",
        "| way | CPU s (median) | wall s (median) | times ours |",
        "|---|---|---|---|",
    ]
    for label in made.cpu:
        ratios = made.ratios(label)
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        cpu, wall = statistics.median(made.cpu[label]), statistics.median(made.wall[label])
        lines.append(f"| {label} | {cpu:.3f} | {wall:.3f} | {'1' if label == made.ours else spread} |")
    told = [
        f"{key}: {value:.4g}" if isinstance(value, float) else f"{key}: {value}"
        for key, value in made.counts.items()
    ]
    rounds = len(made.cpu[made.ours])
    told += [f"rounds: {rounds}", f"stolen: {made.stolen:.1%}", f"waited for a core: {made.waited:.0%}"]
    return "\n".join([*lines, "", "; ".join(told), ""])


def machine() -> dict[str, Any]:
    """Return what the figures were taken on."""
    import transformers

    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": len(names),
        "load": [round(value, 1) for value in os.getloadavg()],
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def report(name: str, made: list[Comparison], force: bool = False) -> int:
    """Print and keep comparisons as JSON and Markdown; refuse those of a machine that was not ours.

    Returns:
        An exit code: 1 when any was refused.
    """
    refused = [one for one in made if one.stolen > MOST_STOLEN and not force]
    for one in refused:
        print(
            f"{one.name}: refused, {one.stolen:.0%} of the machine's time was stolen; run it again",
            file=sys.stderr,
        )
    kept = [one for one in made if one not in refused]
    text = "\n".join(markdown(one) for one in kept)
    print(text)
    if kept:
        RESULTS.mkdir(exist_ok=True)
        answer = {"machine": machine(), "comparisons": [asdict(one) for one in kept]}
        (RESULTS / f"{name}.json").write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
        (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    return 1 if refused else 0


def options(about: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (default 5)")
    parser.add_argument("--force", action="store_true", help="keep figures of a busy machine too")
    return parser


@dataclass(frozen=True)
class Curve:
    """Hold how the cost of something grows.

    Attributes:
        name: what was done.
        of: what grows.
        sizes: how large it was.
        seconds: CPU seconds at each size, the least of a few rounds.
        per: what each size is divided by to give `seconds` a unit cost, e.g. "code".
    """

    name: str
    of: str
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    per: str

    def markdown(self) -> str:
        """Return a Markdown table: seconds, and milliseconds for each one."""
        lines = [f"### {self.name}", "", f"| {self.of} | CPU s | ms a {self.per} |", "|---|---|---|"]
        for size, taken in zip(self.sizes, self.seconds, strict=True):
            lines.append(f"| {size:,} | {taken:.3f} | {1000 * taken / size:.3f} |")
        return "\n".join([*lines, ""])


def curve(name: str, of: str, per: str, work: Mapping[int, Callable[[], object]], rounds: int) -> Curve:
    """Time the work of each size: the least CPU time of `rounds` rounds, which take turns, after a first."""
    least: dict[int, float] = {}
    for number in range(rounds + 1):
        for size, run in work.items():
            started = time.process_time()
            run()
            taken = time.process_time() - started
            if number:
                least[size] = min(taken, least.get(size, taken))
    return Curve(name, of, tuple(least), tuple(least.values()), per)


def keep(name: str, text: str, answer: Mapping[str, Any]) -> None:
    """Print figures and keep them as JSON and Markdown."""
    print(text)
    RESULTS.mkdir(exist_ok=True)
    told = json.dumps({"machine": machine(), **answer}, indent=1)
    (RESULTS / f"{name}.json").write_text(told + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(text + "\n", encoding="utf-8")


def plot(name: str, curves: list[Curve]) -> None:
    """Draw curves of cost against size, both axes logarithmic, to `results/<name>.png`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(curves), figsize=(3.4 * len(curves), 3), squeeze=False)
    for panel, one in zip(axes[0], curves, strict=True):
        panel.loglog(one.sizes, one.seconds, "o-")
        panel.set(title=one.name, xlabel=one.of, ylabel="CPU seconds")
        panel.title.set_fontsize(9)
        panel.grid(True, which="both", alpha=0.3)
    figure.tight_layout()
    figure.savefig(RESULTS / f"{name}.png", dpi=110)
    pyplot.close(figure)
