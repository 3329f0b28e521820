"""How long `janus-plugins plugins` takes with 1 to 300 further plugins installed.

Each is a distribution of its own, with metadata and an entry point as pip lays them out, and a module that
declares one component. The command runs in new processes, after one that does not count; the sizes take
turns, so that a machine that slows down slows all of them.

    python -m benchmarks.plugins
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.harness import RESULTS, machine, options

SIZES = (0, 1, 10, 30, 100, 300)
MOST_SECONDS = 1.0
"""What listing 300 plugins may take."""

MODULE = '''"""Plugin {index} of the benchmark."""

from janus_plugins import CONTRACT_VERSION, AdapterFacts, ComponentConfig, ComponentSpec, Kind, hookimpl
from pydantic import Field


class Config{index}(ComponentConfig):
    """Set the adapter."""

    depth: int = Field(default=2, ge=1, description="layers")
    width: int | None = Field(default=None, ge=1, description="hidden width")

    def facts(self, source, model):
        """Answer the widths."""
        return AdapterFacts("features", source.width, model.width)


@hookimpl
def janus_components():
    """Return what this package offers."""
    return [
        ComponentSpec(
            kind=Kind.ADAPTER,
            name="listed-{index}",
            config=Config{index},
            factory="janus_listed_{index}_model:build",
            contract=CONTRACT_VERSION,
            summary="adapter {index}",
        )
    ]
'''
METADATA = "Metadata-Version: 2.1\nName: janus-listed-{index}\nVersion: 1.{index}\nSummary: adapter {index}\n"


def install(site: Path, count: int) -> Path:
    """Lay out `count` installed distributions in a folder, as pip does; return the folder."""
    site.mkdir(parents=True)
    for index in range(count):
        (site / f"janus_listed_{index}.py").write_text(MODULE.format(index=index), encoding="utf-8")
        info = site / f"janus_listed_{index}-1.{index}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(METADATA.format(index=index), encoding="utf-8")
        (info / "entry_points.txt").write_text(
            f"[janus_plugins]\nmain = janus_listed_{index}\n", encoding="utf-8"
        )
    return site


def listing(site: Path, *words: str) -> tuple[float, float, str]:
    """List the plugins in a new process; return wall-clock and CPU seconds, and what was printed."""
    paths = [str(site), str(Path(__file__).parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed plugin has its byte code
    before, started = os.times(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "janus_plugins", "plugins", *words],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    wall, after = time.perf_counter() - started, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, used, done.stdout


def measure(rounds: int, sizes: tuple[int, ...] = SIZES) -> dict[int, dict[str, list[float]]]:
    """Return wall-clock and CPU seconds of every round, by number of plugins."""
    taken: dict[int, dict[str, list[float]]] = {size: {"wall": [], "cpu": []} for size in sizes}
    with TemporaryDirectory() as folder:
        sites = {size: install(Path(folder) / str(size), size) for size in sizes}
        for size, site in sites.items():
            reports = json.loads(listing(site, "--json")[2])  # writes byte code, as pip does
            found = [each for each in reports if each["distribution"].startswith("janus-listed-")]
            assert len(found) == size
            assert all(each["status"] == "ok" for each in found)
        for _ in range(rounds):
            for size, site in sites.items():
                wall, cpu, _ = listing(site)
                taken[size]["wall"].append(wall)
                taken[size]["cpu"].append(cpu)
    return taken


def table(taken: dict[int, dict[str, list[float]]]) -> str:
    """Return a Markdown table of the medians, and of the best round."""
    lines = [
        "### `janus-plugins plugins`, whole process",
        "",
        "| further plugins | wall s (median) | wall s (best) | CPU s (median) | CPU s (best) |",
        "|---|---|---|---|---|",
    ]
    for size, seconds in taken.items():
        cells = [
            f"{take(seconds[kind]):.2f}" for kind in ("wall", "cpu") for take in (statistics.median, min)
        ]
        lines.append(f"| {size} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main() -> int:
    """Measure, print, keep the figures; return 1 where listing the most plugins takes too long."""
    chosen = options(__doc__.partition("\n")[0]).parse_args()
    taken = measure(chosen.rounds)
    text = table(taken)
    print(text)
    RESULTS.mkdir(exist_ok=True)
    answer: dict[str, Any] = {
        "machine": machine(),
        "seconds": {str(size): each for size, each in taken.items()},
    }
    (RESULTS / "plugins.json").write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "plugins.md").write_text(text, encoding="utf-8")
    # CPU time of one thread, in the quickest round: the rest measures who else uses the machine.
    return int(min(taken[max(taken)]["cpu"]) > MOST_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
