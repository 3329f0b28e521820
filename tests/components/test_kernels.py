"""The kernels of a decoding step on a GPU, against the same in plain torch: interpreted here, run there."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from janus_plugins.core.native import on_gpu

from .interpreter import run_interpreted
from .plain_kernels import (
    carrying as plain_carrying,
    look as plain_look,
    normed as plain_normed,
    product as plain_product,
    summed_squares,
)

knobs = pytest.importorskip("triton").knobs

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def close(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours.float() - theirs.float()).norm() <= TOLERANCE[ours.dtype] * theirs.float().norm())


WAYS = list(itertools.product((False, True), repeat=3))
"""Whether rows are normed before, added to after, gated."""

IN_USE = [(True, False, False), (False, True, False), (True, False, True)]


def drawn(device: str, dtype: torch.dtype) -> Callable[..., Tensor]:
    return lambda *shape: torch.randn(*shape, device=device).to(dtype)


def check_product(
    kernels: ModuleType,
    device: str,
    dtype: torch.dtype,
    rows: int,
    sizes: tuple[int, int],
    ways: list[tuple[bool, bool, bool]],
    shape: tuple[int, ...] | None,
) -> None:
    torch.manual_seed(0)
    outputs, inputs = sizes

    normal = drawn(device, dtype)
    source, weight, norm = normal(rows, inputs), normal(2 * outputs, inputs) / 8, normal(inputs)
    for normed, added, gated in ways:
        options = {
            "norm": norm if normed else None,
            "epsilon": 1e-6,
            "added": normal(rows, outputs if gated else 2 * outputs) if added else None,
            "gated": gated,
        }
        arrived = torch.zeros(outputs // 8 + 1, dtype=torch.int32, device=device)
        options |= {"later": weight.view(-1)[8:], "arrived": arrived}
        found = kernels.product(source, weight, **options, shape=shape and kernels.Shape(*shape))
        assert not arrived.any()
        assert close(found, plain_product(source, weight, **options)), (normed, added, gated)


def check_carried(
    kernels: ModuleType,
    device: str,
    dtype: torch.dtype,
    rows: int,
    sizes: tuple[int, int],
    shape: tuple[int, ...] | None,
) -> None:
    """A product's norm by what the one ahead carries, against a norm in between."""
    torch.manual_seed(0)
    outputs, inputs = sizes

    normal = drawn(device, dtype)
    source, weight, added, norm = (
        normal(rows, inputs),
        normal(outputs, inputs) / 8,
        normal(rows, outputs),
        normal(outputs),
    )
    arrived = torch.zeros(outputs // 8 + 1, dtype=torch.int32, device=device)
    options = {"later": weight.view(-1)[8:], "arrived": arrived, "shape": shape and kernels.Shape(*shape)}
    stream, *carried = kernels.carrying(source, weight, added, norm, **options)
    theirs = plain_carrying(source, weight, added, norm)
    assert [(one.dtype, one.shape) for one in (stream, *carried)] == [
        (one.dtype, one.shape) for one in theirs
    ]
    assert close(stream, theirs[0])
    assert torch.equal(carried[0], stream * norm)
    assert close(carried[1], summed_squares(stream))
    assert torch.equal(stream, kernels.product(source, weight, added=added, **options))
    second = normal(6 * 16, outputs) / 8
    for gated in (False, True):
        options |= {"gated": gated, "epsilon": 0.1}
        found = kernels.product(carried[0], second, squares=carried[1], **options)
        expected = plain_product(stream, second, norm=norm, epsilon=0.1, gated=gated)
        assert close(found, expected)
    assert not arrived.any()


def check_look(
    kernels: ModuleType,
    device: str,
    dtype: torch.dtype,
    heads: int,
    slot: int,
    way: tuple[bool | int, ...] | None,
    later: Tensor | None = None,
    rows: int = 3,
) -> None:
    torch.manual_seed(slot)
    groups, width, length = 2, 16, 80

    normal = drawn(device, dtype)
    cosines, sines = normal(length, width), normal(length, width)
    at = torch.randint(0, length, (rows,), device=device)
    arrived = torch.zeros(rows * heads, dtype=torch.int32, device=device)
    for masked, fresh in ((False, True), (True, False)):
        seen = torch.rand(rows, 1, 1, length - 5, device=device) > 0.4 if masked else None
        mixed, cache = normal(rows, (heads + 2 * groups) * width), normal(rows, 2 * groups, length, width)
        theirs = cache.clone()
        given = (mixed, cosines, sines, at)
        further = (torch.tensor([slot], device=device), seen, arrived, heads, 0.25)
        found = kernels.look(
            *given, cache, *further, cosines.view(-1)[8:] if later is None else later, fresh,
            way=way and kernels.Look(*way),
        )  # fmt: skip
        assert close(found, plain_look(*given, theirs, *further))
        assert close(cache, theirs)
        assert not arrived.any()


if knobs.runtime.interpret:

    @pytest.mark.parametrize(
        ("rows", "dtype", "ways"),
        [(1, torch.bfloat16, IN_USE), (2, torch.float32, WAYS), (3, torch.float16, IN_USE)],
    )
    def test_products_of_a_few_rows(rows, dtype, ways):
        check_product(on_gpu.kernels(), "cpu", dtype, rows, (10, 80), ways, (4, 64, 4))

    @pytest.mark.parametrize("rows", [2, 6])
    def test_a_norm_alone(rows):
        source, norm = torch.randn(rows, 80), torch.randn(80)
        assert close(on_gpu.kernels().normed(source, norm, 1e-6), plain_normed(source, norm, 1e-6))

    @pytest.mark.parametrize(("outputs", "parts"), [(16, 1), (64, 1), (16, 3)])
    def test_products_of_some_rows(outputs, parts):
        cut = (outputs, 16, 4, 3, None, parts)
        check_product(on_gpu.kernels(), "cpu", torch.float32, 6, (10, 80), IN_USE, cut)

    @pytest.mark.parametrize("outputs", [48, 70])
    @pytest.mark.parametrize(("block", "parts"), [(16, 1), (64, 1), (32, 3)])
    def test_a_norm_that_the_product_ahead_carries(block, parts, outputs):
        cut = (block, 16, 4, 3, None, parts)
        check_carried(on_gpu.kernels(), "cpu", torch.float32, 6, (outputs, 80), cut)

    @pytest.mark.parametrize("heads", [4, 2], ids=["shared keys", "own keys"])
    @pytest.mark.parametrize(("slot", "cuts"), [(0, 4), (1, 1), (70, 1), (70, 4)])
    def test_attention_from_one_slot(heads, slot, cuts):
        way = (heads == 2, 16, cuts, 1, 3)
        check_look(on_gpu.kernels(), "cpu", torch.float32, heads, slot, way)

    @pytest.mark.parametrize("heads", [4, 2])
    def test_attention_in_16_bits(heads):
        way = (heads == 2, 16, 2, 1)  # it has no products of bf16
        check_look(on_gpu.kernels(), "cpu", torch.float16, heads, 40, way)

    @pytest.mark.parametrize("way", [None, (True, 16, 4, 2, 1, 3), (False, 32, 2, 4, 2, 2)])
    def test_attention_of_more_rows(way):
        check_look(on_gpu.kernels(), "cpu", torch.float32, 2, 70, way, rows=6)

    @pytest.mark.parametrize(("rows", "numbers"), [(2, 10), (2, 64 * 300 + 2), (6, 64)])
    def test_what_later_kernels_read_is_brought_near(rows, numbers, monkeypatch):
        """As on a Hopper GPU; what its instructions are is written down instead."""
        kernels, asked = on_gpu.kernels(), []

        def bring_near(place):
            asked.extend(place.handle.data.ravel().tolist())

        def nothing(early):
            pass

        monkeypatch.setattr(kernels, "_bring_near", bring_near)
        for name in ("_begin", "_summed", "_wait"):
            monkeypatch.setattr(kernels, name, nothing)
        monkeypatch.setattr(kernels, "_early", lambda *_: kernels.AT_ONCE)
        monkeypatch.setattr(kernels, "_launch", lambda *_: {})
        source, weight = torch.randn(rows, 80).half(), torch.randn(40, 80).half()
        later = torch.zeros(numbers + 64).half()[64:]
        seen = [
            lambda: kernels.product(source, weight, later=later, shape=kernels.Shape(16, 64, 4, 3)),
            lambda: check_look(kernels, "cpu", torch.float16, 4, 40, (False, 16, 2, 4), later),
        ]
        for call in seen:
            asked.clear()
            call()
            first, last = later.data_ptr(), later.data_ptr() + later.nbytes
            assert {place for place in asked if first <= place < last} == set(range(first, last, 128))

else:

    def test_in_the_interpreter():
        run_interpreted(__file__, passing=30)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 4, 5, 32, 64])
def test_products_on_a_gpu(rows, dtype):
    cuts = [None, (32, 64, 4, 3, None, 4), (16, 32, 2, 4), (64, 32, 4, 4)]
    for sizes, cut in (((512, 1024), None), *(((520, 1408), cut) for cut in cuts)):
        check_product(on_gpu.kernels(), "cuda", dtype, rows, sizes, IN_USE, cut)
        if rows > on_gpu.FEW:
            check_carried(on_gpu.kernels(), "cuda", dtype, rows, sizes, cut)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [2, 4])
def test_attention_on_a_gpu(heads, dtype):
    alone = [(True, 16, 4, 1), (True, 32, 2, 4, 1, 2)]
    ways = [None, (False, 32, 1, 4, 3), (False, 32, 1, 4, 3, 3), *(alone if heads == 2 else [])]
    for slot, way, rows in itertools.product((0, 1, 31, 70), ways, (3, 32)):
        for _ in range(3):
            check_look(on_gpu.kernels(), "cuda", dtype, heads, slot, way, rows=rows)
