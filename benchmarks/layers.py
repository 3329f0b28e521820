"""Time a decoding step's layers on a GPU, and look for quicker ways of cutting their kernels.

Run `python -m benchmarks.layers [--rows 2] [--rows 32] [--search]`: 24 layers of Janus-1.3B's sizes with
random weights in bf16, recorded as one graph, over a cache half filled by an image. Beside a layer's time
stands what reading its weights and its cache takes at the bandwidth measured in the same run. With
`--search` it tries other shapes of each product (`core.native.kernels.Shape`), other amounts of weights
brought near (`core.native.on_gpu.Ahead`) and fewer parts of attention (`kernels.CUT`), one change at a
time, and keeps what gains more than half a percent in two runs by turns; what it prints at the end is what
the constants there should say. Other processes compile what is to be tried, before it is.
`--device cpu --layers 2 --width 64` tries the command in Triton's interpreter (TRITON_INTERPRET=1), and
keeps nothing.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from multiprocessing.pool import Pool
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

from benchmarks import harness
from benchmarks.gpu import bandwidth
from janus_plugins.core.contracts import Cached
from janus_plugins.core.native import on_gpu
from janus_plugins.core.native.kernels import CUT, Shape
from janus_plugins.language_models import joining, step
from janus_plugins.language_models.cache import CachedAttention, KeyValueCache

Work = Callable[[], object]
Change = Callable[["Way"], "Way"]
PRODUCTS = ("qkv", "out", "gate_up", "down")
MIB = 1 << 20

SHAPES = {
    "few": [
        Shape(outputs, inputs, warps, 1, registers)
        for outputs, inputs, warps, registers in (
            (1, 512, 1, None), (1, 1024, 1, None), (1, 1024, 1, 96), (1, 2048, 1, None), (1, 2048, 2, None),
            (2, 512, 1, None), (2, 512, 2, None), (2, 1024, 1, None), (2, 1024, 1, 128), (2, 1024, 2, None),
            (2, 1024, 2, 96), (2, 2048, 2, None), (2, 2048, 4, None), (4, 512, 1, None), (4, 512, 1, 96),
            (4, 512, 2, None), (4, 512, 4, None), (4, 1024, 4, None), (4, 1024, 4, 96), (4, 1024, 4, 128),
            (8, 512, 4, None),
        )
    ],
    "many": [
        Shape(outputs, inputs, warps, stages, None, parts)
        for outputs, inputs, warps, stages, parts in (
            (16, 256, 2, 4, 1), (16, 512, 4, 3, 1), (16, 256, 4, 4, 2), (32, 128, 2, 5, 1),
            (32, 128, 4, 4, 1), (32, 128, 4, 4, 2), (32, 128, 4, 5, 4), (32, 256, 4, 3, 2),
            (64, 64, 4, 5, 1), (64, 64, 4, 5, 2), (64, 128, 4, 3, 2), (64, 128, 4, 4, 4),
            (64, 128, 4, 4, 8), (64, 128, 8, 4, 4), (128, 64, 8, 4, 1), (128, 64, 8, 4, 2),
            (128, 64, 8, 4, 8),
        )
    ],
}  # fmt: skip
AHEAD = {
    "qkv": (0, 4, 8),
    "look": (0, 8, 12, 16, 24),
    "out": (0, 4, 8, 12),
    "gate_up": (0, 4, 8, 12),
    "down": (0, 4, 8, 12),
}
"""MiB brought near by each kernel."""

CUTS = (4, 8, 16)
"""Parts that attention cuts its slots in, at most."""


@dataclass(frozen=True)
class Way:
    """Say how each product is cut (None: as the kernels do), what is brought near, attention's most parts."""

    shapes: tuple[Shape | None, ...]
    ahead: on_gpu.Ahead
    cuts: int

    def __str__(self) -> str:
        cuts = [
            f"{name} {'as it is' if cut is None else tuple(cut)}"
            for name, cut in zip(PRODUCTS, self.shapes, strict=True)
        ]
        near = [f"{name} {size / MIB:g}" for name, size in self.ahead._asdict().items()]
        return f"{'; '.join(cuts)}; MiB near: {', '.join(near)}; attention in {self.cuts} parts"


class Layers:
    """Layers of a Llama with random weights, and a cache.

    Args:
        device: where.
        rows: of the step.
        layers: how many.
        width: of the model; 2,048 are Janus-1.3B's sizes.
        kind: of all numbers.
    """

    def __init__(self, device: str, rows: int, layers: int, width: int, kind: torch.dtype) -> None:
        heads = max(2, width // 128)
        self.sizes = (width, width * 11 // 4)
        config = LlamaConfig(
            vocab_size=8, hidden_size=width, intermediate_size=self.sizes[1], num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=1024,
        )  # fmt: skip
        with torch.device(device):
            self.body: Any = LlamaModel(config).to(kind).eval()
        for layer in self.body.layers:
            for several in step._of_one_input(layer):
                joining._move([each.weight for each in several])  # on a CPU, too, where a step leaves them
        self.cache = KeyValueCache(rows, 640)
        self.rows, self.device, self.kind = rows, torch.device(device), kind
        self.stream = torch.randn(rows, width, device=device, dtype=kind)
        for layer in range(layers):
            both = torch.randn(rows, 2 * heads, 640, width // heads, device=device, dtype=kind)
            self.cache._keep(layer, both)
        self.slot = torch.tensor([320], device=device)
        self.at = torch.full((rows,), 320, device=device)

    @property
    def bytes_a_layer(self) -> int:
        """Return the bytes that a layer of a step must read: its weights, and keys and values so far."""
        width, inner = self.sizes
        numbers = 4 * width * width + 3 * width * inner + 2 * self.rows * width * int(self.slot)
        return numbers * self.kind.itemsize

    def work(self, way: Way, recorded: bool = True) -> Work:
        """Return one step of all layers in a way, run once and then, on a GPU, recorded."""
        with chosen(way, self.sizes):
            made = step.LlamaStep(self.body, self.cache)
            assert made.on_gpu is not None
            visible = torch.ones(self.rows, 640, dtype=torch.bool, device=self.device)
            plan = Cached(639, visible, self.slot)
            attend = CachedAttention(plan, self.cache, (self.rows, 1), self.device)

            def run() -> Tensor:
                assert made.on_gpu is not None
                return made.on_gpu(made, self.stream, self.at, attend)

            run()
            if self.device.type == "cpu" or not recorded:
                return run
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                kept = run()
        return lambda: (graph.replay(), kept)


@contextmanager
def chosen(way: Way, sizes: tuple[int, int]) -> Iterator[None]:
    """Let kernels be cut in a way."""
    kernels = on_gpu.kernels()
    plain, (width, inner) = kernels._shape, sizes
    known = dict(
        zip([(3 * width, width), (width, width), (inner, width), (width, inner)], way.shapes, strict=True)
    )

    def shape(rows: int, outputs: int, inputs: int, gated: bool, size: int) -> Shape:
        cut = known.get((outputs, inputs))
        return plain(rows, outputs, inputs, gated, size) if cut is None else cut

    with (
        patch.object(kernels, "_shape", shape),
        patch.object(kernels, "CUT", way.cuts),
        patch.object(on_gpu, "ahead_of", lambda rows: way.ahead),
        patch.object(on_gpu, "has_kernels", lambda device: True),
    ):
        yield


def seconds(work: Work, device: torch.device, times: int = 40) -> float:
    """Return what one run takes of several in a row."""
    if device.type == "cpu":
        started = time.perf_counter()
        work()
        return time.perf_counter() - started
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    work()
    before.record()
    for _ in range(times):
        work()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / 1000 / times


def tried(layers: Layers, best: Work, other: Work, gain: float = 0.005) -> tuple[bool, float, float]:
    """Return whether another way is quicker, and the seconds of both: runs by turns, the median of five."""
    taken = [[seconds(work, layers.device) for work in (best, other)] for _ in range(5)]
    ours, theirs = (statistics.median(column) for column in zip(*taken, strict=True))
    return theirs < ours * (1 - gain), ours, theirs


def others(way: Way, rows: int) -> Iterator[list[Change]]:
    """Yield changes of one part of a way: of what is brought near and of attention, then of products."""

    def cut(index: int, shape: Shape) -> Change:
        return lambda old: replace(
            old, shapes=tuple(shape if i == index else kept for i, kept in enumerate(old.shapes))
        )

    def near(name: str, size: int) -> Change:
        return lambda old: replace(old, ahead=old.ahead._replace(**{name: size * MIB}))

    brought = [near(name, size) for name, sizes in AHEAD.items() for size in sizes]
    yield brought + [functools.partial(replace, cuts=number) for number in CUTS]
    shapes = SHAPES["few" if rows <= on_gpu.FEW else "many"]
    yield [cut(index, shape) for index in range(len(way.shapes)) for shape in shapes]


def searched(layers: Layers, best: Way, until: float, pool: Pool | None = None) -> Way:
    """Return the quickest way found, one change at a time, before a time."""
    work = layers.work(best)
    for changes in others(best, layers.rows):
        if pool is not None:
            ways = {change(best) for change in changes}
            tasks = [(layers.device.type, layers.sizes[0], layers.rows, way) for way in ways]
            with suppress(multiprocessing.TimeoutError):  # what is missing is compiled when it is tried
                pool.starmap_async(_compiled, tasks, 1).get(timeout=60)
        for change in changes:
            if time.perf_counter() > until:
                return best
            other = change(best)
            if other == best:
                continue
            try:
                candidate = layers.work(other)
            except Exception as error:  # a shape that does not fit the device
                print(f"  {other}: {type(error).__name__}", file=sys.stderr)
                continue
            quicker, ours, theirs = tried(layers, work, candidate)
            print(f"  {theirs * 1e6:8.1f} us, best {ours * 1e6:8.1f}: {other}", flush=True)
            if quicker and tried(layers, work, candidate)[0]:
                best, work = other, candidate
    return best


@contextmanager
def _workers(needed: bool) -> Iterator[Pool | None]:
    """Give processes that compile kernels; to be made before this one asks for a device."""
    if not needed:
        yield None
        return
    with multiprocessing.get_context("fork").Pool(max(1, (os.cpu_count() or 1) - 2)) as pool:
        yield pool


_two_layers = functools.cache(Layers)


def _compiled(device: str, width: int, rows: int, way: Way) -> None:
    """Compile a way's kernels to Triton's cache on disk."""
    with torch.no_grad():
        try:
            _two_layers(device, rows, 2, width, torch.bfloat16).work(way, recorded=False)
        except Exception:  # the search meets it again, and says so
            return


def measured(
    layers: Layers, given: argparse.Namespace, speed: float, pool: Pool | None
) -> tuple[list[str], dict[str, Any]]:
    """Time the layers as they are, without anything brought near for later, and the best way found."""
    number, least = given.layers, layers.bytes_a_layer / speed
    now = Way((None,) * 4, on_gpu.ahead_of(layers.rows), CUT)
    ways = {
        "as they are": now,
        "nothing brought near for later": replace(now, ahead=on_gpu.Ahead(0, 0, 0, 0, 0)),
    }
    if given.search:
        ways["the best found"] = searched(layers, now, time.perf_counter() + given.seconds, pool)
    works = {name: layers.work(way) for name, way in ways.items()}
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(given.rounds):
        for name, work in works.items():
            taken[name].append(seconds(work, layers.device) / number)
    lines, kept = [], {}
    for name, each in taken.items():
        middle = statistics.median(each)
        lines.append(
            f"| {layers.rows} | {name} | {middle * 1e6:.1f} | {least * 1e6:.1f} | {least / middle:.0%} |"
        )
        kept[name] = {"seconds a layer": each, "way": str(ways[name]), "least": least, **asdict(ways[name])}
    return lines, kept


def main() -> int:
    """Time layers for so many rows; search."""
    parser = harness.options(__doc__ or "")
    parser.add_argument("--rows", type=int, action="append", help="rows of a step (default: 2 and 32)")
    parser.add_argument("--search", action="store_true", help="try other ways")
    parser.add_argument("--seconds", type=float, default=120.0, help="of a search (default 120)")
    parser.add_argument("--layers", type=int, default=24, help="how many (default 24)")
    parser.add_argument("--width", type=int, default=2048, help="of the model (default 2048)")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: to try the command")
    given = parser.parse_args()
    with _workers(given.search and given.device == "cuda") as pool:
        return run(given, pool)


def run(given: argparse.Namespace, pool: Pool | None) -> int:
    """Time layers as asked."""
    if given.device == "cuda" and not torch.cuda.is_available():
        print("there is no GPU here; run this where torch.cuda.is_available()", file=sys.stderr)
        return 1
    lines = ["| rows | kernels | us a layer | memory alone | share |", "|---|---|---|---|---|"]
    kept: dict[str, Any] = {}
    speed = bandwidth(given.device)
    with torch.no_grad(), harness.turn():  # weights made under inference mode could not be joined
        for rows in given.rows or [2, 32]:
            kind = torch.bfloat16 if given.device == "cuda" else torch.float16  # which the interpreter has
            layers = Layers(given.device, rows, given.layers, given.width, kind)
            some, kept[str(rows)] = measured(layers, given, speed, pool)
            lines += some
    if given.device == "cpu":
        print("\n".join(lines))
        return 0
    name = torch.cuda.get_device_name()
    ways = [f"- {rows} rows, {way}: {each['way']}" for rows, of in kept.items() for way, each in of.items()]
    text = "\n".join([*lines, "", *ways, "", f"{name}; {speed / 1e12:.2f} TB/s"])
    harness.keep("layers", text, {"device": name, "rows": kept})
    return 0


if __name__ == "__main__":
    sys.exit(main())
