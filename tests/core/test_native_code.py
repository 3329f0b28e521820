"""Code in C: compiled once, never from a place that others write to, and right for every size."""

import logging
import os
import shutil

import pytest
import torch

from janus_plugins.core.native import build
from janus_plugins.core.native.products import FEW_ROWS, Products, Weight, can_read_4_bits

SOURCE = '#include "products.h"\nint answer(void) { return MOST_ROWS + %d; }\n'

needs_native = pytest.mark.skipif(not build.can_run(), reason="this machine runs no such code")


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    build.library.cache_clear()
    file = tmp_path / "answer.c"
    file.write_text(SOURCE % 1)
    yield file
    build.library.cache_clear()


def kept(tmp_path):
    return sorted((tmp_path / "cache" / "janus-plugins" / "native").iterdir())


@needs_native
def test_a_source_is_compiled_once(source, tmp_path, monkeypatch):
    assert build.library(source).answer() == 5
    (file,) = kept(tmp_path)
    assert not file.parent.stat().st_mode & 0o077
    build.library.cache_clear()
    monkeypatch.setenv("CC", "/no/such/compiler")
    assert build.library(source).answer() == 5  # found, not compiled
    build.library.cache_clear()
    monkeypatch.delenv("CC")
    source.write_text(SOURCE % 2)
    assert build.library(source).answer() == 6
    assert len(kept(tmp_path)) == 2


@needs_native
def test_a_file_that_cannot_be_loaded_is_compiled_again(source, tmp_path):
    folder = tmp_path / "cache" / "janus-plugins" / "native"
    build.library(source)
    (file,) = kept(tmp_path)
    spoilt = source.with_name("other.c")
    spoilt.write_text(SOURCE % 1)
    # A file of the name that the other source will ask for: a loaded one may not be written to.
    target = folder / file.name.replace("answer", "other")
    target.write_bytes(b"\x7fELF, and no more")
    assert build.library(spoilt).answer() == 5


@needs_native
@pytest.mark.parametrize("compiler", ["/no/such/compiler", "false", "cc --no-such-option"])
def test_a_compiler_that_fails_is_told_of_once(source, tmp_path, monkeypatch, caplog, compiler):
    monkeypatch.setenv("CC", compiler)
    assert build.library(source) is None
    assert build.library(source) is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "answer.c cannot be compiled and loaded, so this machine decodes slower" in caplog.text
    assert kept(tmp_path) == []


@needs_native
def test_a_library_that_cannot_be_loaded_is_told_with_the_way_out(source, tmp_path, monkeypatch, caplog):
    """As where the home folder is mounted so that nothing runs from it."""
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\nfor last; do :; done\necho "no library" > "$last"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    assert build.library(source) is None
    assert str(kept(tmp_path)[0]) in caplog.text
    assert "set XDG_CACHE_HOME to one where they may" in caplog.text


@needs_native
def test_without_a_compiler_there_is_no_library(source, monkeypatch, caplog):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with caplog.at_level(logging.INFO):
        assert build.library(source) is None
    assert "there is no C compiler" in caplog.text


@pytest.mark.parametrize(("platform", "capability"), [("win32", "AVX2"), ("linux", "DEFAULT")])
def test_other_machines_have_no_library(source, monkeypatch, platform, capability):
    monkeypatch.setattr(build.sys, "platform", platform)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert build.library(source) is None


@needs_native
@pytest.mark.parametrize("spoil", ["others may write", "not a folder", "not writable"])
def test_a_cache_folder_that_cannot_be_trusted_is_left_alone(source, tmp_path, monkeypatch, spoil):
    cache = tmp_path / "cache" / "janus-plugins" / "native"
    if spoil == "not a folder":
        (tmp_path / "cache").write_text("")
    else:
        cache.mkdir(parents=True)
        cache.chmod(0o777)
    if spoil == "not writable":
        cache.chmod(0o500)
        monkeypatch.setattr(os, "access", lambda *_: False)  # the superuser may write everywhere
    assert build.library(source).answer() == 5
    assert not cache.is_dir() or not list(cache.iterdir())


def weight(outputs, inputs, dtype, bias=True):
    numbers = torch.randn(outputs, inputs)
    if dtype == torch.int8:
        numbers = (numbers * 30).clamp(-127, 127)
    scales = torch.rand(outputs) + 0.1 if dtype == torch.int8 else None
    return Weight(numbers.to(dtype), torch.randn(outputs) if bias else None, scales)


def exact(rows, weights):
    made = []
    for numbers, bias, scales in weights:
        in_8_bits = scales is not None
        one = (rows.bfloat16() if in_8_bits else rows).double() @ numbers.double().T
        one = (one * scales.double()).bfloat16().double() if in_8_bits else one
        made.append(one if bias is None else one + bias.double())
    return torch.cat(made, -1)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (7, 3), (64, 6), (100, 29), (256, 130), (33, 768)])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 9, FEW_ROWS])
def test_products_are_right_and_rows_mind_no_mates(dtype, inputs, outputs, rows):
    torch.manual_seed(0)
    weights = [weight(outputs, inputs, dtype), weight(outputs + 5, inputs, dtype, bias=False)]
    products, source = Products.of(weights), torch.randn(rows, inputs)
    made, expected = products(source), exact(source, weights)
    # Of a sum between two halves either may be the nearest.
    slack = 3e-6 if dtype != torch.int8 else 2**-8
    assert (made - expected).abs().max() <= slack * (1 + expected.abs().max())
    assert (made - expected).abs().mean() <= 3e-6 * (1 + expected.abs().max())
    for row in range(rows):
        assert torch.equal(products(source[row : row + 1]), made[row : row + 1])


@pytest.mark.skipif(not can_read_4_bits(), reason="torch lays numbers of 4 bits in another way here")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(32, 32), (64, 96), (416, 256)])
@pytest.mark.parametrize("rows", [1, 2, 3, FEW_ROWS])
def test_products_in_4_bits_are_right_and_rows_mind_no_mates(inputs, outputs, rows, bias):
    torch.manual_seed(0)
    steps = torch.randint(0, 16, (outputs, inputs), dtype=torch.int32)
    spread = (torch.rand(inputs // 32, outputs, 2) - 0.3).bfloat16()
    scales, middles = spread.float().unbind(2)
    lies = torch.ops.aten._convert_weight_to_int4pack_for_cpu(steps, 1)
    added = torch.randn(outputs) if bias else torch.zeros(outputs)
    products = Products.of([Weight(lies, added if bias else None, spread)] * 2)
    source = torch.randn(rows, inputs)
    whole = (steps - 8) * scales.T.repeat_interleave(32, 1) + middles.T.repeat_interleave(32, 1)
    expected = (source.bfloat16().double() @ whole.double().T).bfloat16().float() + added
    made = products(source)
    assert torch.equal(made[:, :outputs], made[:, outputs:])
    off = (made[:, :outputs] - expected).abs()
    assert (off <= 2**-7 * expected.abs() + 1e-4).all()
    assert off.mean() < 1e-4 * (1 + expected.abs().max())
    for row in range(rows):
        assert torch.equal(products(source[row : row + 1]), made[row : row + 1])


@needs_native
def test_threads_change_no_number():
    torch.manual_seed(0)
    products, source = Products.of([weight(700, 512, torch.float32)]), torch.randn(2, 512)
    before, made = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            made.append(products(source))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


@needs_native
def test_a_product_takes_what_it_can_read_alone():
    whole = weight(8, 16, torch.float32)
    products = Products.of([whole])
    assert products.takes(torch.zeros(2, 3, 16))
    assert products(torch.zeros(0, 16)).shape == (0, 8)
    assert not products.takes(torch.zeros(2, 15))
    assert not products.takes(torch.zeros(FEW_ROWS + 1, 16))
    assert not products.takes(torch.zeros(2, 16, device="meta"))
    assert Products.of([whole._replace(numbers=whole.numbers.T)]) is None
    assert Products.of([whole._replace(numbers=whole.numbers.half())]) is None
    assert Products.of([whole._replace(bias=whole.bias.double())]) is None
    assert Products.of([whole._replace(numbers=whole.numbers.to("meta"))]) is None
    assert Products.of([whole._replace(bias=whole.bias[1:])]) is None
    assert Products.of([whole._replace(numbers=whole.numbers.to(torch.int8))]) is None  # without scales
    assert Products.of([whole._replace(numbers=whole.numbers.to(torch.uint8))]) is None


@needs_native
def test_what_is_not_a_number_stays_so():
    products, source = Products.of([weight(9, 16, torch.float32)]), torch.zeros(2, 16)
    source[1, 3] = float("nan")
    made = products(source)
    assert made[0].isfinite().all()
    assert made[1].isnan().all()
