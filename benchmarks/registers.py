"""Tell what the compiler makes of a decoding layer's kernels for a Hopper GPU, on a machine without one.

Run `python -m benchmarks.registers [--rows 2] [--rows 32]`: the kernels of a layer of Janus-1.3B's sizes in
bf16, and of the norm after all layers, as a step launches them, are compiled for compute capability 9.0 with
Triton's own tools. Told are a thread's registers, how many programs of a kernel therefore stand on a
multiprocessor beside one another, on an H200's 132 how often those are filled, and barriers within a program.
Times come from a GPU alone (`benchmarks.layers`). How Triton is kept from asking for a device is its own
affair: written for 3.6 to 3.9.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from benchmarks import harness
from benchmarks.launches import GPU, Driver
from benchmarks.layers import Layers, Way
from janus_plugins.core.native import kernels, on_gpu

PROGRAMS = 32
"""Programs that stand on a multiprocessor at most."""

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Made:
    """Say what became of a kernel.

    Attributes:
        name: its name.
        programs: of a launch.
        warps: of a program.
        registers: of a thread.
        shared: bytes of shared memory of a program.
        barriers: instructions at which a program's warps wait for one another.
    """

    name: str
    programs: int
    warps: int
    registers: int
    shared: int
    barriers: int

    @property
    def beside(self) -> int:
        """Return how many programs fit a multiprocessor at once."""
        warp = math.ceil(self.registers / 8) * 8 * GPU.warp_size
        fitting = GPU.regs_per_multiprocessor // (warp * self.warps)
        threads = GPU.max_threads_per_multi_processor // (self.warps * GPU.warp_size)
        memory = GPU.shared_memory_per_multiprocessor // (self.shared + 1024)
        return int(min(PROGRAMS, fitting, threads, memory))

    @property
    def rounds(self) -> float:
        """Return how often a launch fills the GPU."""
        return self.programs / (self.beside * GPU.multi_processor_count)


@contextmanager
def compiled_only() -> Iterator[list[tuple[Any, int]]]:
    """Compile what is launched inside for a Hopper GPU instead; yields kernels and their programs."""
    found: list[tuple[Any, int]] = []
    run = JITFunction.run

    def compile(self: Any, *given: Any, grid: Any, **named: Any) -> Any:
        made = run(self, *given, grid=grid, **{**named, "warmup": True})
        found.append((made, math.prod(grid)))
        return made

    driver.set_active(Driver())
    early = kernels._early.__wrapped__  # asked anew, for a GPU that is not there
    with (
        patch.object(JITFunction, "run", compile),
        patch.object(torch.cuda, "get_device_capability", lambda _: (GPU.major, GPU.minor)),
        patch.object(kernels, "_early", lambda _, rows: early(torch.device("cuda"), rows)),
    ):
        yield found


def described(kernel: Any, programs: int) -> Made:
    """Return what became of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        used = _said("cuobjdump", "-res-usage", file.name)
        code = _said("nvdisasm", "-c", file.name)
    registers = re.search(r"REG:(\d+)", used)
    assert registers is not None, used
    meta = kernel.metadata
    barriers = len(re.findall(r"\bBAR\.SYNC", code))
    return Made(kernel.name.strip("_"), programs, meta.num_warps, int(registers[1]), meta.shared, barriers)


def _said(tool: str, *given: str) -> str:
    done = subprocess.run([TOOLS / tool, *given], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def layer(rows: int, way: Way) -> list[Made]:
    """Return what became of the kernels of a layer of a step of so many rows, and of the last norm."""
    layers = Layers("cpu", rows, 2, 2048, torch.bfloat16)
    with torch.inference_mode(), compiled_only() as found:
        layers.work(way)
    each = (len(found) - 1) // 2
    first = len(found) - 1 - each - bool(way.carried)  # carried, the product that ends a layer is another one
    return [described(kernel, programs) for kernel, programs in found[first:]]


def main() -> int:
    """Describe the kernels of a layer."""
    parser = harness.options(__doc__ or "")
    parser.add_argument("--rows", type=int, action="append", help="rows of a step (default: 2 and 32)")
    given = parser.parse_args()
    lines = [
        "| rows | kernel | programs | warps | registers | beside one another | times filled | barriers |",
        "|---|---|---|---|---|---|---|---|",
    ]
    kept = {}
    ways = {f"{rows}": (rows, Way(carried=False)) for rows in given.rows or [2, 32]}
    ways |= {
        f"{rows}, norms carried": (rows, Way(carried=True)) for rows, _ in ways.values() if rows > on_gpu.FEW
    }
    for name, (rows, way) in ways.items():
        made = layer(rows, way)
        kept[name] = [asdict(one) for one in made]
        lines += [
            f"| {name} | {one.name} | {one.programs:,} | {one.warps} | {one.registers} | {one.beside} "
            f"| {one.rounds:.2f} | {one.barriers} |"
            for one in made
        ]
    harness.keep("registers", "\n".join(lines), {"triton": triton.__version__, "rows": kept})
    return 0


if __name__ == "__main__":
    sys.exit(main())
