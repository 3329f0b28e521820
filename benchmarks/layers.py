"""Time a decoding step's layers on a GPU, and look for quicker ways of cutting their kernels.

Run `python -m benchmarks.layers [--rows 2] [--rows 32] [--search]`: 24 layers of Janus-1.3B's sizes with
random weights in bf16, recorded as one graph, over a cache half filled by an image. Beside a layer's time
stands what reading its weights and its cache takes at the bandwidth measured in the same run. With
`--search` it tries whether products carry the norms after them (`core.native.on_gpu.carries`), other ways of
attention (`core.native.kernels.Look`), when a kernel may begin (`kernels._early`), other shapes of each
product (`kernels.Shape`) and other amounts of weights brought near (`on_gpu.Ahead`), one change at a time
and, while time is left, all over again; it keeps what gains more than half a percent in two runs by turns.
What it prints at the end is what the constants there should say, and what `benchmarks.gpu --found` tries.
Other processes compile what is to be tried, before it is. Torch's profiler tells what each kernel of a layer
takes, as they are and in the best way.
`--device cpu --layers 2 --width 64` tries the command in Triton's interpreter (TRITON_INTERPRET=1), runs
everything once and keeps nothing.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

from benchmarks import harness
from benchmarks.gpu import bandwidth
from janus_plugins.core.contracts import Cached
from janus_plugins.core.native import on_gpu
from janus_plugins.core.native.kernels import AT_ONCE, LATE, NOT, Look, Shape
from janus_plugins.language_models import joining, step
from janus_plugins.language_models.cache import CachedAttention, KeyValueCache

Work = Callable[[], object]
Change = Callable[["Way"], "Way"]
PRODUCTS = ("qkv", "out", "gate_up", "down")
OURS = [f"_{name}_kernel" for name in ("rows", "dots", "norm", "look", "look_alone")]
MIB = 1 << 20

SHAPES: dict[str, dict[str, list[Shape]]] = {
    "few": {
        "gate_up": [
            Shape(*cut)
            for cut in (
                (2, 2048, 4), (4, 1024, 4), (4, 2048, 8), (2, 4096, 4), (2, 2048, 2), (4, 2048, 4),
                (2, 1024, 2), (4, 1024, 4, 1, 96), (1, 2048, 2), (2, 1024, 1), (8, 512, 4),
            )
        ],
        "qkv": [
            Shape(*cut)
            for cut in (
                (8, 512, 4), (4, 2048, 4), (4, 1024, 4), (4, 2048, 8), (2, 2048, 4), (4, 1024, 2),
                (2, 2048, 2), (4, 1024, 4, 1, 96), (2, 1024, 1), (4, 512, 2), (2, 1024, 2), (4, 512, 4),
            )
        ],
        "down": [
            Shape(*cut)
            for cut in (
                (2, 2048, 2), (2, 2048, 4), (2, 1024, 1), (1, 2048, 1), (2, 4096, 4), (1, 2048, 2),
                (4, 1024, 4), (4, 2048, 8), (2, 1024, 2), (4, 1024, 2), (2, 2048, 1), (2, 512, 1),
            )
        ],
        "out": [
            Shape(*cut)
            for cut in (
                (2, 1024, 1), (2, 2048, 2), (1, 1024, 1), (1, 2048, 1), (1, 2048, 2), (2, 2048, 4),
                (4, 1024, 2), (2, 512, 1), (2, 1024, 1, 1, 128), (2, 1024, 2), (4, 1024, 4),
            )
        ],
    },
    "many": {
        "down": [
            Shape(outputs, inputs, warps, stages, None, parts)
            for outputs, inputs, warps, stages, parts in (
                (64, 128, 4, 4, 4), (64, 64, 4, 7, 4), (32, 256, 4, 4, 2), (32, 128, 4, 6, 2),
                (64, 64, 4, 5, 4), (64, 128, 4, 5, 4), (32, 128, 4, 4, 2), (32, 128, 4, 5, 4),
                (64, 128, 8, 4, 4), (64, 128, 4, 3, 2), (16, 512, 4, 4, 1), (16, 256, 2, 4, 1),
                (16, 256, 4, 4, 1), (16, 128, 2, 8, 1), (32, 256, 4, 3, 1),
            )
        ],
        "qkv": [
            Shape(*cut)
            for cut in (
                (64, 128, 4, 4), (64, 64, 4, 7), (32, 128, 4, 6), (32, 256, 4, 4), (64, 64, 4, 8),
                (64, 128, 4, 5), (32, 128, 4, 4), (64, 64, 4, 5), (16, 256, 2, 3), (32, 128, 2, 5),
                (32, 64, 2, 6), (16, 128, 2, 6), (16, 512, 4, 3), (16, 128, 2, 8),
            )
        ],
        "gate_up": [
            Shape(*cut)
            for cut in (
                (64, 64, 4, 7), (64, 128, 4, 4), (32, 128, 4, 4), (64, 128, 4, 3), (64, 64, 8, 5),
                (32, 128, 4, 6), (32, 64, 2, 6), (32, 256, 4, 3), (32, 128, 2, 5), (64, 32, 4, 8),
                (64, 64, 4, 5),
            )
        ],
        "out": [
            Shape(*cut)
            for cut in (
                (16, 256, 2, 3), (16, 128, 2, 6), (16, 256, 4, 4), (16, 512, 4, 3), (16, 128, 2, 8),
                (32, 128, 4, 4), (16, 512, 4, 2), (32, 128, 2, 5), (16, 256, 2, 4),
            )
        ],
    },
}  # fmt: skip
"""By product, and by how many rows; the most promising first."""

LOOKS = {
    "few": [
        Look(*way)
        for way in (
            (True, 16, 32, 1), (True, 32, 16, 2), (True, 16, 16, 1, 1, 3), (True, 32, 8, 2, 1, 2),
            (True, 16, 16, 2), (True, 16, 16, 2, 1, 3), (True, 64, 8, 4), (True, 32, 16, 4),
            (True, 32, 32, 2), (True, 64, 1, 8, 1, 10), (False, 64, 1, 8, 3, 10), (False, 32, 16, 2, 2),
            (False, 16, 32, 1, 2), (False, 32, 8, 4, 3), (True, 16, 16, 1),
        )
    ],
    "many": [
        Look(*way)
        for way in (
            (False, 32, 1, 4, 3, 2), (False, 32, 1, 4, 3, 3), (False, 16, 1, 1, 4), (False, 32, 1, 2, 4),
            (False, 32, 1, 1, 3), (False, 32, 2, 2, 3), (False, 32, 1, 4, 4), (False, 16, 1, 2, 4, 4),
            (False, 32, 2, 4, 3), (True, 16, 2, 1), (True, 32, 2, 2), (False, 32, 2, 1, 3),
            (False, 16, 2, 1, 4), (True, 16, 4, 1), (True, 32, 2, 4), (True, 64, 1, 4),
            (False, 32, 1, 4, 3),
        )
    ],
}  # fmt: skip

AHEAD = {
    "gate_up": (0, 8, 12, 16, 20),
    "down": (0, 2, 4, 6, 8),
    "qkv": (0, 2, 4, 6),
    "out": (0, 2, 4),
    "look": (0, 2),
}
"""MiB brought near by each kernel."""

NEAR = (0, 1 << 14, 1 << 16)
"""Bytes that a program on the tensor cores has brought near of its own weights."""

SLOTS = (320, 560)
"""Where the new slot lies in a step that is timed: in the middle of a picture, and near its end."""

HOPELESS = 1.02
"""How much longer a way may take in a first look."""

EARLY = {NOT: "has ended", AT_ONCE: "has begun", LATE: "has its sums"}


@dataclass(frozen=True)
class Way:
    """Say how kernels run; None, of each: as they do.

    Attributes:
        shapes: how each product is cut.
        ahead: what is brought near.
        look: how attention is cut.
        early: when the next kernel may begin.
        carried: whether products carry the next norm.
    """

    shapes: tuple[Shape | None, ...] = (None,) * len(PRODUCTS)
    ahead: on_gpu.Ahead | None = None
    look: Look | None = None
    early: int | None = None
    carried: bool | None = None

    def told(self) -> dict[str, Any]:
        """Return all of it by name."""
        parts = {**dict(zip(PRODUCTS, self.shapes, strict=True)), "ahead": self.ahead, "look": self.look}
        named = {name: None if part is None else part._asdict() for name, part in parts.items()}
        return {**named, "early": None if self.early is None else EARLY[self.early], "carried": self.carried}

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Way:
        """Return the way that was `told`."""
        shapes = tuple(told[name] and Shape(**told[name]) for name in PRODUCTS)
        early = next((number for number, name in EARLY.items() if name == told["early"]), None)
        ahead, look = told["ahead"], told["look"]
        carried = told["carried"]
        return cls(shapes, ahead and on_gpu.Ahead(**ahead), look and Look(**look), early, carried)

    def __str__(self) -> str:
        cuts = [
            f"{name} {'as it is' if cut is None else tuple(cut)}"
            for name, cut in zip((*PRODUCTS, "look"), (*self.shapes, self.look), strict=True)
        ]
        near = [f"{name} {size / MIB:g}" for name, size in self.ahead._asdict().items()] if self.ahead else []
        next_one = "as it does" if self.early is None else f"once one {EARLY[self.early]}"
        norms = {None: "as they are", True: "carried", False: "not carried"}[self.carried]
        return (
            f"{'; '.join(cuts)}; norms {norms}; MiB near: {', '.join(near) or 'as it is'}; "
            f"the next begins {next_one}"
        )


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
        self.heads = heads = max(2, width // 128)
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
        self.slot = torch.tensor([SLOTS[0]], device=device)
        self.at = torch.full((rows,), SLOTS[0], device=device)

    @property
    def bytes_a_layer(self) -> int:
        """Return the bytes that a layer of a step must read: its weights, and keys and values so far."""
        return sum(self.bytes_by_kernel.values())

    @property
    def bytes_by_kernel(self) -> dict[str, int]:
        """Return the bytes that each kernel of a layer must read."""
        width, inner = self.sizes
        numbers = {
            "qkv": 3 * width * width,
            "look": 2 * self.rows * width * int(self.slot),
            "out": width * width,
            "gate_up": 2 * width * inner,
            "down": width * inner,
        }
        return {name: number * self.kind.itemsize for name, number in numbers.items()}

    @property
    def as_they_are(self) -> Way:
        """Return how the kernels run by themselves."""
        kernels, size = on_gpu.kernels(), self.kind.itemsize
        shapes = tuple(
            kernels._shape(self.rows, *product, name == "gate_up", size)
            for name, product in zip(PRODUCTS, products(self.sizes), strict=True)
        )
        look = kernels._look_way(self.rows, self.heads, self.heads, self.sizes[0] // self.heads, size)
        early, carried = kernels._early(self.device, self.rows), on_gpu.carries(self.rows, self.kind)
        return Way(shapes, on_gpu.ahead_of(self.rows), look, early, carried)

    def work(self, way: Way, recorded: bool = True) -> Work:
        """Return one step of all layers in a way, run once and then, on a GPU, recorded."""
        with chosen(lambda _: way, self.sizes), patch.object(on_gpu, "has_kernels", lambda device: True):
            made = step.LlamaStep(self.body, self.cache)
            assert made.on_gpu is not None
            visible = torch.ones(self.rows, 640, dtype=torch.bool, device=self.device)
            plan = Cached(639, visible, self.slot, padded=False)
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


def products(sizes: tuple[int, int]) -> list[tuple[int, int]]:
    """Return outputs and inputs of a layer's products."""
    width, inner = sizes
    return [(3 * width, width), (width, width), (inner, width), (width, inner)]


@contextmanager
def chosen(way_of: Callable[[int], Way], sizes: tuple[int, int]) -> Iterator[None]:
    """Let kernels run in a way, by the rows of a step."""
    kernels = on_gpu.kernels()
    cut, look, early = kernels._shape, kernels._look_way, kernels._early
    ahead, carries = on_gpu.ahead_of, on_gpu.carries

    def shape(rows: int, outputs: int, inputs: int, gated: bool, size: int) -> Shape:
        known = dict(zip(products(sizes), way_of(rows).shapes, strict=True))
        return known.get((outputs, inputs)) or cut(rows, outputs, inputs, gated, size)

    def begins(device: torch.device, rows: int) -> int:
        can, asked = early(device, rows), way_of(rows).early
        return can and (can if asked is None else asked)

    def carried(rows: int, kind: torch.dtype) -> bool:
        asked = way_of(rows).carried
        return carries(rows, kind) if asked is None else asked

    with (
        patch.object(kernels, "_shape", shape),
        patch.object(kernels, "_look_way", lambda rows, *given: way_of(rows).look or look(rows, *given)),
        patch.object(kernels, "_early", begins),
        patch.object(on_gpu, "ahead_of", lambda rows: way_of(rows).ahead or ahead(rows)),
        patch.object(on_gpu, "carries", carried),
    ):
        yield


def best_found(file: Path) -> AbstractContextManager[None]:
    """Let kernels run as an earlier search found best, for a model of its sizes."""
    kept = json.loads(file.read_text(encoding="utf-8"))
    ways = {int(rows): Way.of(of["the best found"]) for rows, of in kept["rows"].items()}
    few, many = (
        next((way for rows, way in ways.items() if (rows <= on_gpu.FEW) is wanted), Way())
        for wanted in (True, False)
    )
    return chosen(lambda rows: few if rows <= on_gpu.FEW else many, tuple(kept["sizes"]))


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
    """Return whether another way is quicker, and the seconds of both: runs by turns, the median of five.

    Each counts at the middle of a picture and near its end. What takes much longer is not run again.
    """

    def both(times: int) -> tuple[float, float]:
        taken = [0.0, 0.0]
        for slot in SLOTS:
            layers.slot.fill_(slot)
            for place, work in enumerate((best, other)):
                taken[place] += seconds(work, layers.device, times) / len(SLOTS)
        layers.slot.fill_(SLOTS[0])
        return taken[0], taken[1]

    ours, theirs = both(8)
    if theirs > ours * HOPELESS or layers.device.type == "cpu":
        return theirs < ours, ours, theirs
    ours, theirs = (statistics.median(column) for column in zip(*[both(20) for _ in range(5)], strict=True))
    return theirs < ours * (1 - gain), ours, theirs


def others(rows: int, sizes: tuple[int, int]) -> Iterator[list[Change]]:
    """Yield changes of one part of a way, what promises most first."""

    def shaped(index: int, change: Callable[[Shape], Shape]) -> Change:
        return lambda old: replace(
            old,
            shapes=tuple(change(cut) if cut and i == index else cut for i, cut in enumerate(old.shapes)),
        )

    def cut(index: int, shape: Shape) -> Change:
        fitting = 1 << (products(sizes)[index][1] - 1).bit_length()
        return shaped(index, lambda _: shape._replace(inputs=min(shape.inputs, fitting)))

    def cuts(name: str) -> list[Change]:
        return [cut(PRODUCTS.index(name), shape) for shape in SHAPES[kind][name]]

    def own(name: str, size: int) -> Change:
        return shaped(PRODUCTS.index(name), lambda shape: shape._replace(near=size))

    def norms(old: Way) -> Way:
        return replace(old, carried=not old.carried)

    def begins(early: int) -> Change:
        return lambda old: replace(old, early=early) if old.early else old

    def at_once(name: str, shape: Shape) -> Change:
        """Cut a kernel so that it leaves room for one beside it, which begins at once."""
        return lambda old: begins(AT_ONCE)(cut(PRODUCTS.index(name), shape)(old))

    def near(name: str, size: int) -> Change:
        return lambda old: replace(old, ahead=old.ahead and old.ahead._replace(**{name: size * MIB}))

    few = rows <= on_gpu.FEW
    kind = "few" if few else "many"
    looks: list[Change] = [functools.partial(replace, look=look) for look in LOOKS[kind]]
    near_later = [near(name, size) for name, amounts in AHEAD.items() for size in amounts]
    if few:
        yield [*looks, begins(LATE), begins(AT_ONCE)]
        yield [*cuts("gate_up"), *cuts("qkv"), *cuts("down"), *cuts("out")]
        yield near_later
        return
    yield [norms, *cuts("down")]
    yield [*cuts("qkv"), *looks]
    pairs = [at_once("out", Shape(16, 256, 2, 3)), at_once("qkv", Shape(32, 128, 4, 4))]
    yield [begins(AT_ONCE), *pairs, begins(LATE), *cuts("gate_up"), *cuts("out")]
    yield [*(own(name, size) for name in PRODUCTS for size in NEAR), *near_later]


def searched(layers: Layers, best: Way, until: float, pool: Pool | None = None) -> Way:
    """Return the quickest way found, one change at a time, before a time."""
    work, known = layers.work(best), {best}  # ways tried against the best one
    for changes in itertools.cycle(passes := list(others(layers.rows, layers.sizes))):
        if changes is passes[0] and all(change(best) in known for each in passes for change in each):
            return best
        ahead = _compiled_ahead(pool, layers, [change(best) for change in changes])
        for change in changes:
            if time.perf_counter() > until:
                return best
            other = change(best)
            if other in known:
                continue
            known.add(other)
            if other in ahead:
                with suppress(multiprocessing.TimeoutError):  # it is compiled here then
                    ahead[other].get(timeout=30)
            try:
                candidate = layers.work(other)
            except Exception as error:  # a shape that does not fit the device
                print(f"  {other}: {type(error).__name__}", file=sys.stderr)
                continue
            quicker, ours, theirs = tried(layers, work, candidate)
            print(f"  {theirs * 1e6:8.1f} us, best {ours * 1e6:8.1f}: {other}", flush=True)
            if quicker and tried(layers, work, candidate)[0]:
                best, work, known = other, candidate, {best, other}
                ahead = _compiled_ahead(pool, layers, [change(best) for change in changes])
    return best


def _compiled_ahead(pool: Pool | None, layers: Layers, ways: list[Way]) -> dict[Way, Any]:
    """Have other processes, if any, compile ways' kernels; return by way what is ready once it is."""
    if pool is None:
        return {}
    given = (layers.sizes[0], layers.rows)
    return {way: pool.apply_async(_compiled, (*given, way)) for way in dict.fromkeys(ways)}


@contextmanager
def _workers(needed: bool) -> Iterator[Pool | None]:
    """Give processes that compile kernels; to be made before this one asks for a device."""
    if not needed:
        yield None
        return
    with multiprocessing.get_context("fork").Pool(max(1, (os.cpu_count() or 1) - 2)) as pool:
        yield pool


_two_layers = functools.cache(Layers)


def _compiled(width: int, rows: int, way: Way) -> None:
    """Compile a way's kernels for a Hopper GPU to Triton's cache on disk, without asking for one."""
    from benchmarks.registers import compiled_only

    torch.set_num_threads(1)
    with (
        torch.no_grad(),
        suppress(Exception),
        compiled_only(),
    ):  # the search meets an error again, and says so
        _two_layers("cpu", rows, 2, width, torch.bfloat16).work(way)


def measured(
    layers: Layers, given: argparse.Namespace, speed: float, pool: Pool | None
) -> tuple[list[str], list[str], dict[str, Any]]:
    """Time the layers as they are, without anything brought near for later, and the best way found.

    Returns:
        Lines of the ways, lines of the first and the last one's kernels, and what is kept.
    """
    number, least = given.layers, layers.bytes_a_layer / speed
    now, table = layers.as_they_are, []
    each_kernel: dict[str, list[tuple[str, float, float]]] = {}

    def tell_apart(name: str, work: Work) -> None:
        least_of = {kernel: size / speed for kernel, size in layers.bytes_by_kernel.items()}
        each_kernel[name] = by_kernel(layers, work, number)
        for kernel, *times in each_kernel[name]:
            told = " | ".join(f"{one * 1e6:.1f}" for one in (*times, least_of.get(kernel, 0.0)))
            table.append(f"| {layers.rows} | {name} | {kernel} | {told} |")
            print(table[-1], flush=True)

    tell_apart("as they are", layers.work(now))
    ways = {
        "as they are": now,
        "nothing brought near for later": replace(now, ahead=on_gpu.Ahead(0, 0, 0, 0, 0)),
    }
    if given.search:
        ways["the best found"] = searched(layers, now, time.perf_counter() + given.seconds, pool)
    works = {name: layers.work(way) for name, way in ways.items()}
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(1 if given.device == "cpu" else given.rounds):
        for name, work in works.items():
            taken[name].append(seconds(work, layers.device) / number)
    lines, kept = [], {}
    for name, each in taken.items():
        middle = statistics.median(each)
        lines.append(
            f"| {layers.rows} | {name} | {middle * 1e6:.1f} | {least * 1e6:.1f} | {least / middle:.0%} |"
        )
        kept[name] = {
            "seconds a layer": each, "way": str(ways[name]), "least": least, **ways[name].told(),
        }  # fmt: skip
    if given.search:
        tell_apart("the best found", works["the best found"])
    for name, kernels in each_kernel.items():
        kept[name]["kernels"] = kernels
    return lines, table, kept


def by_kernel(layers: Layers, work: Work, number: int, times: int = 5) -> list[tuple[str, float, float]]:
    """Return each kernel of a layer, the seconds it takes, and those from the end of the one ahead of it.

    The second are less where a kernel begins early. On a CPU, or where the profiler fails, there is none.
    """
    if layers.device.type == "cpu":
        return []
    try:
        return grouped(profiled(work, times), number, times)
    except Exception as error:
        print(f"kernels of {layers.rows} rows not told apart: {error!r}", file=sys.stderr)
        return []


def profiled(work: Work, times: int) -> list[tuple[str, float, float]]:
    """Return name, start and end in seconds of our kernels in so many runs."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    work()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(times):
            work()
        torch.cuda.synchronize()
    return [
        (event.name, event.time_range.start / 1e6, event.time_range.end / 1e6)
        for event in seen.events()
        if event.device_type == DeviceType.CUDA and event.name.split("(")[0] in OURS
    ]


def grouped(ran: list[tuple[str, float, float]], number: int, times: int) -> list[tuple[str, float, float]]:
    """Return kernels by their place in one of so many layers, each of which ran so many times: medians."""
    run, odd = divmod(len(ran), times)
    each, left = divmod(run - 1, number)
    if odd or left > 1 or each < 1:
        raise ValueError(f"{len(ran)} kernels of {number} layers, {times} times")
    ran = sorted(ran, key=lambda one: one[1])
    # The last one is the norm after all layers, and one ahead of them that before the first layer's product.
    ran = [one for place, one in enumerate(ran) if left <= place % run < run - 1]
    places, order = [], iter(("qkv", "look", "out", "gate_up", "down"))
    for place in range(each):
        own = ran[place::each]
        name = "norm" if own[0][0].startswith("_norm") else next(order)
        length = statistics.median(end - start for _, start, end in own)
        pairs = [(i, i - 1) for i in range(place, len(ran), each) if i % (each * number)]
        after = statistics.median(ran[i][2] - ran[before][2] for i, before in pairs)
        places.append((name, length, after))
    return places


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
    table = [
        "| rows | kernels | kernel | us | us after the one ahead | what it must read at that speed, us |",
        "|---|---|---|---|---|---|",
    ]
    kept: dict[str, Any] = {}
    speed = bandwidth(given.device)
    with torch.no_grad(), harness.turn():  # weights made under inference mode could not be joined
        for rows in given.rows or [2, 32]:
            kind = torch.bfloat16 if given.device == "cuda" else torch.float32  # which the interpreter has
            layers = Layers(given.device, rows, given.layers, given.width, kind)
            some, more, kept[str(rows)] = measured(layers, given, speed, pool)
            lines += some
            table += more
    if given.device == "cpu":
        print("\n".join(lines))
        return 0
    name = torch.cuda.get_device_name()
    ways = [f"- {rows} rows, {way}: {each['way']}" for rows, of in kept.items() for way, each in of.items()]
    text = "\n".join([*lines, "", *table, "", *ways, "", f"{name}; {speed / 1e12:.2f} TB/s"])
    harness.keep("layers", text, {"device": name, "sizes": layers.sizes, "rows": kept})
    return 0


if __name__ == "__main__":
    sys.exit(main())
