"""Kernels of a decoding step on a GPU, in Triton: products of a few rows, and attention from one slot a row.

A step of one image reads every weight once and computes next to nothing, so it is as fast as weights arrive,
and as few kernels follow one another. A library's products are made for many rows; these do on the way what
would else be kernels of its own: the norm before a product, the gate or the sum after it. Attention turns
queries and keys, writes the cache and looks back in one kernel. From Hopper on a kernel begins before the
one ahead of it has ended: until then it has its weights brought near, which wait for nobody. And while a
kernel ends, memory would have nothing to do: it has some of what later kernels read brought near, too.

Import it where Triton is installed. The plain functions below say what each kernel computes; on a CPU they
run in Triton's interpreter alone.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from janus_plugins.core.native.on_gpu import BLOCK, FEW

PROGRAMS = 512
"""Attention is cut in as many parts as give so many programs: four for each multiprocessor of an H200."""

CUT = 16
"""Parts at most."""

LINE = 128
"""Bytes that a GPU brings near at once."""

VECTOR = 16
"""Bytes beside one another that a thread loads: what it multiplies with them it sums up at once."""

SHARED = 200_000
"""Bytes that a program may keep close by."""

NOT, AT_ONCE, LATE = 0, 1, 2
"""When the next kernel may begin: once this one has ended, at once, or once its sums are there."""


class Shape(NamedTuple):
    """Say how a product is cut into programs: outputs and inputs at once, warps, loads under way.

    With `registers`, a thread has so many at most, so that more programs stand beside one another. The others
    are of products on the tensor cores. So many bytes of its weights a program has brought `near` before the
    kernel ahead has ended; together they must not push one another out. With more `parts` than one the inputs
    are cut in so many, and the last program of some outputs to end sums them up: the rows, which every
    program reads, are then read less often.
    """

    outputs: int
    inputs: int
    warps: int
    stages: int = 1
    registers: int | None = None
    parts: int = 1
    near: int = 1 << 15


class Look(NamedTuple):
    """Say how attention is cut into programs: slots at once, parts of all slots, warps, loads under way.

    With `alone` every head takes plain arithmetic, for heads with keys of their own only, and its next slots
    are under way in registers; else the heads that share keys take the tensor cores. So many times `some` of
    a part's slots are asked for, `near`, before the kernel ahead has ended.
    """

    alone: bool
    some: int
    cuts: int
    warps: int
    stages: int = 1
    near: int = 1


@triton.jit
def _begin(EARLY: tl.constexpr):
    """Let the next kernel begin; it waits by itself for what this one makes."""
    if EARLY == 1:
        gdc_launch_dependents()


@triton.jit
def _summed(EARLY: tl.constexpr):
    """Let the next kernel begin now that all sums are there."""
    if EARLY == 2:
        gdc_launch_dependents()


@triton.jit
def _wait(EARLY: tl.constexpr):
    """Wait for all that earlier kernels make. Nothing may be written, nor read but weights, before."""
    if EARLY:
        gdc_wait()


@triton.jit
def _bring_near(place):
    """Have lines of memory brought to the cache that all multiprocessors share."""
    asm: tl.constexpr = "prefetch.global.L2 [$1]; mov.u32 $0, 0;"
    tl.inline_asm_elementwise(asm, "=r,l", [place.to(tl.int64)], tl.int32, is_pure=False, pack=1)


@triton.jit
def _bring_later(later, program, programs, LINES: tl.constexpr, EACH: tl.constexpr, LINE: tl.constexpr):
    """Have what later kernels read brought near: so many lines, the last programs first."""
    if LINES > 0:
        some = tl.arange(0, EACH)
        for first in range((programs - 1 - program) * EACH, LINES, programs * EACH):
            _bring_near(later + tl.minimum(first + some, LINES - 1) * LINE)


@triton.jit
def _few(products, N: tl.constexpr, K: tl.constexpr, INNER: tl.constexpr):
    """Return products [N, K] summed where one thread holds them [N, K / INNER]: so many fewer registers."""
    return tl.sum(tl.reshape(products, (N, K // INNER, INNER)), 2)


@triton.jit
def _rows_kernel(
    source, weight, norm, added, later, result, outputs, epsilon,
    INPUTS: tl.constexpr, ROWS: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    INNER: tl.constexpr, LATER: tl.constexpr, EACH: tl.constexpr, LINE: tl.constexpr,
    NORMED: tl.constexpr, GATED: tl.constexpr, ADDED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Multiply up to four rows with a weight; every weight is read once, and used for all rows."""
    _begin(EARLY)
    _bring_later(later, tl.program_id(0), tl.num_programs(0), LATER, EACH, LINE)
    n = tl.program_id(0) * N + tl.arange(0, N)
    fits = n < outputs
    first = tl.arange(0, K)
    # In 64 bits: the place in a large weight is beyond 32.
    place = weight + n[:, None].to(tl.int64) * INPUTS + first[None, :]
    above = place + outputs.to(tl.int64) * INPUTS
    both = fits[:, None] & (first < INPUTS)[None, :]
    some = tl.load(place, both, 0.0, eviction_policy="evict_first")
    more = some
    if GATED:
        more = tl.load(above, both, 0.0, eviction_policy="evict_first")
    if EARLY and INPUTS > K:
        line = K + tl.arange(0, (triton.next_power_of_2(INPUTS - K) + 63) // 64) * 64
        line = tl.minimum(line, INPUTS - 1)[None, :]
        near = weight + tl.minimum(n, outputs - 1)[:, None].to(tl.int64) * INPUTS + line
        _bring_near(near)
        if GATED:
            _bring_near(near + outputs.to(tl.int64) * INPUTS)
    _wait(EARLY)
    # All that is read at the end is asked for now: nothing waits for it then.
    to0 = tl.load(added + n, fits, 0.0) if ADDED else 0.0
    to1 = tl.load(added + outputs + n, fits, 0.0) if ADDED and ROWS > 1 else 0.0
    to2 = tl.load(added + 2 * outputs + n, fits, 0.0) if ADDED and ROWS > 2 else 0.0
    to3 = tl.load(added + 3 * outputs + n, fits, 0.0) if ADDED and ROWS > 3 else 0.0
    sum0 = tl.zeros((N, K // INNER), tl.float32)
    sum1, sum2, sum3 = sum0, sum0, sum0
    up0, up1, up2, up3 = sum0, sum0, sum0, sum0
    square0 = tl.zeros((K // INNER,), tl.float32)
    square1, square2, square3 = square0, square0, square0
    for start in tl.static_range(0, INPUTS, K):
        k = start + first
        inside = k < INPUTS
        if start > 0:
            both = fits[:, None] & inside[None, :]
            some = tl.load(place + start, both, 0.0, eviction_policy="evict_first")
            if GATED:
                more = tl.load(above + start, both, 0.0, eviction_policy="evict_first")
        scale = 1.0
        if NORMED:
            scale = tl.load(norm + k, inside, 0.0).to(tl.float32)
        gate, up = some.to(tl.float32), more.to(tl.float32)
        row0 = tl.load(source + k, inside, 0.0).to(tl.float32)
        square0 += tl.sum(tl.reshape(row0 * row0, (K // INNER, INNER)), 1)
        sum0 += _few(gate * (row0 * scale)[None, :], N, K, INNER)
        if GATED:
            up0 += _few(up * (row0 * scale)[None, :], N, K, INNER)
        if ROWS > 1:
            row1 = tl.load(source + INPUTS + k, inside, 0.0).to(tl.float32)
            square1 += tl.sum(tl.reshape(row1 * row1, (K // INNER, INNER)), 1)
            sum1 += _few(gate * (row1 * scale)[None, :], N, K, INNER)
            if GATED:
                up1 += _few(up * (row1 * scale)[None, :], N, K, INNER)
        if ROWS > 2:
            row2 = tl.load(source + 2 * INPUTS + k, inside, 0.0).to(tl.float32)
            square2 += tl.sum(tl.reshape(row2 * row2, (K // INNER, INNER)), 1)
            sum2 += _few(gate * (row2 * scale)[None, :], N, K, INNER)
            if GATED:
                up2 += _few(up * (row2 * scale)[None, :], N, K, INNER)
        if ROWS > 3:
            row3 = tl.load(source + 3 * INPUTS + k, inside, 0.0).to(tl.float32)
            square3 += tl.sum(tl.reshape(row3 * row3, (K // INNER, INNER)), 1)
            sum3 += _few(gate * (row3 * scale)[None, :], N, K, INNER)
            if GATED:
                up3 += _few(up * (row3 * scale)[None, :], N, K, INNER)
    _summed(EARLY)
    _finish(sum0, up0, square0, to0, result + n, fits, epsilon, INPUTS, NORMED, GATED)
    if ROWS > 1:
        _finish(sum1, up1, square1, to1, result + outputs + n, fits, epsilon, INPUTS, NORMED, GATED)
    if ROWS > 2:
        _finish(sum2, up2, square2, to2, result + 2 * outputs + n, fits, epsilon, INPUTS, NORMED, GATED)
    if ROWS > 3:
        _finish(sum3, up3, square3, to3, result + 3 * outputs + n, fits, epsilon, INPUTS, NORMED, GATED)


@triton.jit
def _finish(
    sums, ups, squares, added, result, fits, epsilon,
    INPUTS: tl.constexpr, NORMED: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """Write one row: what was summed up, normed, gated or added to, rounded as often as without kernels."""
    total = tl.sum(sums, 1)
    if NORMED:
        short = tl.rsqrt(tl.sum(squares, 0) / INPUTS + epsilon)
        total *= short
    kind = result.dtype.element_ty
    total = total.to(kind).to(tl.float32)
    if GATED:
        up = tl.sum(ups, 1)
        if NORMED:
            up *= short
        total = (total / (1 + tl.exp(-total))).to(kind).to(tl.float32) * up.to(kind).to(tl.float32)
    tl.store(result, (total + added).to(kind), fits)


@triton.jit
def _dots_kernel(
    source, weight, squares, added, following, later, result, weighted, carried, summed, arrived,
    outputs, rows, blocks, epsilon,
    INPUTS: tl.constexpr, ROWS: tl.constexpr, N: tl.constexpr, K: tl.constexpr, STAGES: tl.constexpr,
    PARTS: tl.constexpr, SPAN: tl.constexpr, OWN: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
    LATER: tl.constexpr, EACH: tl.constexpr, LINE: tl.constexpr,
    GATED: tl.constexpr, ADDED: tl.constexpr, CARRIED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Multiply some rows with a weight on the tensor cores, the weight in the place of the many rows."""
    _begin(EARLY)
    block, part = tl.program_id(0), tl.program_id(1)
    _bring_later(later, block * PARTS + part, tl.num_programs(0) * PARTS, LATER, EACH, LINE)
    n = block * N + tl.arange(0, N)
    m = tl.arange(0, ROWS)
    fits = n < outputs
    place = weight + n[:, None].to(tl.int64) * INPUTS
    if EARLY and OWN > 0:
        near = weight + tl.minimum(n, outputs - 1)[:, None].to(tl.int64) * INPUTS
        near += tl.minimum(part * SPAN + tl.arange(0, OWN) * 64, INPUTS - 1)[None, :]
        _bring_near(near)
        if GATED:
            _bring_near(near + outputs.to(tl.int64) * INPUTS)
    if CARRIED:
        scale = tl.load(following + n, fits, 0.0)
    _wait(EARLY)
    at = m[None, :] * outputs + n[:, None]
    written = fits[:, None] & (m[None, :] < rows)
    # All that is read at the end is asked for now: nothing waits for it then.
    if ADDED:
        to = tl.load(added + at, written, 0.0)
    if BLOCKS > 0:
        b = tl.arange(0, BLOCKS)
        known = (b[:, None] < blocks) & (m[None, :] < rows)
        square = tl.load(squares + b[:, None] * rows + m[None, :], known, 0.0)
    sums = tl.zeros((N, ROWS), tl.float32)
    ups = sums
    for start in tl.range(0, SPAN, K, num_stages=STAGES):
        k = part * SPAN + start + tl.arange(0, K)
        inside = k < INPUTS
        both = fits[:, None] & inside[None, :]
        some = tl.load(place + k[None, :], both, 0.0, eviction_policy="evict_first")
        given = (m[None, :] < rows) & inside[:, None]
        row = tl.load(source + m[None, :] * INPUTS + k[:, None], given, 0.0)
        sums = tl.dot(some, row, sums, input_precision="ieee")
        if GATED:
            above = place + outputs.to(tl.int64) * INPUTS + k[None, :]
            more = tl.load(above, both, 0.0, eviction_policy="evict_first")
            ups = tl.dot(more, row, ups, input_precision="ieee")
    _summed(EARLY)
    if BLOCKS > 0:
        short = tl.rsqrt(tl.sum(square, 0) / INPUTS + epsilon)[None, :]
        sums *= short
        ups *= short
    last = True
    if PARTS > 1:
        mine, more = summed + part * (1 + GATED) * ROWS * outputs, ROWS * outputs
        tl.store(mine + at, sums, written)
        if GATED:
            tl.store(mine + more + at, ups, written)
        tl.debug_barrier()  # all of this program's sums are written before it says so
        last = tl.atomic_add(arrived + block, 1, sem="acq_rel", scope="gpu") == PARTS - 1
        if last:
            tl.debug_barrier()
            sums = tl.zeros((N, ROWS), tl.float32)
            ups = sums
            for each in tl.static_range(PARTS):  # in their order, whichever ended last
                theirs = summed + each * (1 + GATED) * ROWS * outputs
                sums += tl.load(theirs + at, written, 0.0, cache_modifier=".cg")
                if GATED:
                    ups += tl.load(theirs + more + at, written, 0.0, cache_modifier=".cg")
            tl.store(arrived + block, 0)  # for the next kernel
    if last:
        kind = result.dtype.element_ty
        total = sums.to(kind).to(tl.float32)  # rounded as often as without kernels
        if GATED:
            total = (total / (1 + tl.exp(-total))).to(kind).to(tl.float32) * ups.to(kind).to(tl.float32)
        if ADDED:
            total += to.to(tl.float32)
        answer = total.to(kind)
        tl.store(result + at, answer, written)
        if CARRIED:
            tl.store(weighted + at, answer * scale[:, None], written)
            wide = answer.to(tl.float32)
            some = tl.sum(tl.reshape(wide * wide, (N // BLOCK, BLOCK, ROWS)), 1)
            b = block * (N // BLOCK) + tl.arange(0, N // BLOCK)
            lies = (b[:, None] * BLOCK < outputs) & (m[None, :] < rows)
            tl.store(carried + b[:, None] * rows + m[None, :], some, lies)


@triton.jit
def _norm_kernel(
    source, weight, result, epsilon, INPUTS: tl.constexpr, WHOLE: tl.constexpr, EARLY: tl.constexpr
):  # fmt: skip
    """Norm one row by its root mean square."""
    _begin(EARLY)
    k = tl.arange(0, WHOLE)
    inside = k < INPUTS
    scale = tl.load(weight + k, inside, 0.0)
    _wait(EARLY)
    row = tl.program_id(0) * INPUTS
    values = tl.load(source + row + k, inside, 0.0).to(tl.float32)
    short = tl.rsqrt(tl.sum(values * values, 0) / INPUTS + epsilon)
    _summed(EARLY)
    kind = result.dtype.element_ty
    tl.store(result + row + k, (values * short).to(kind) * scale, inside)


@triton.jit
def _look_kernel(
    mixed, cosines, sines, at, cache, slot, seen, parts, shares, arrived, later, result,
    heads, groups, length, seen_stride, scale,
    EACH: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr, SOME: tl.constexpr, CUTS: tl.constexpr,
    STAGES: tl.constexpr, NEAR: tl.constexpr, LATER: tl.constexpr, EACH_LATER: tl.constexpr,
    LINE: tl.constexpr, MASKED: tl.constexpr, FRESH: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Attend for the heads of a group of a row, over one part of the slots; the last to end joins them."""
    _begin(EARLY)
    index, part = tl.program_id(0), tl.program_id(1)
    row, group = index // groups, index % groups
    each = tl.arange(0, TILE)
    head = group * EACH + each
    real = each < EACH
    d = tl.arange(0, WIDTH)
    half = (d + WIDTH // 2) % WIDTH
    kind = result.dtype.element_ty
    now, first, last = _slots(slot, part, SOME, CUTS)
    if not FRESH:
        cosine, sine = _angles(cosines, sines, at + row, WIDTH)
    keys = cache + (row * 2 * groups + group).to(tl.int64) * length * WIDTH
    values = keys + groups.to(tl.int64) * length * WIDTH
    if EARLY:
        _bring_slots(keys, values, first, last, WIDTH, SOME, NEAR)
    _bring_later(later, index * CUTS + part, tl.num_programs(0) * CUTS, LATER, EACH_LATER, LINE)
    _wait(EARLY)
    if FRESH:
        cosine, sine = _angles(cosines, sines, at + row, WIDTH)
    line = mixed + row * (heads + 2 * groups) * WIDTH
    own = line + head[:, None] * WIDTH
    query = _turned(
        tl.load(own + d[None, :], real[:, None], 0.0), tl.load(own + half[None, :], real[:, None], 0.0),
        cosine[None, :], sine[None, :],
    )  # fmt: skip
    # The new slot itself, which nobody reads from the cache now, counts last: the others come first.
    own = line + (heads + group) * WIDTH
    plain, other, given = tl.load(own + d), tl.load(own + half), tl.load(own + groups * WIDTH + d)
    most = tl.full((TILE,), -1.0e30, tl.float32)
    whole = tl.zeros((TILE,), tl.float32)
    answer = tl.zeros((TILE, WIDTH), tl.float32)
    for start in tl.range(first, last, SOME, num_stages=STAGES):
        s = start + tl.arange(0, SOME)
        here = s < last
        place = s[:, None] * WIDTH + d[None, :]
        key = tl.load(keys + place, here[:, None], 0.0)
        value = tl.load(values + place, here[:, None], 0.0)
        if MASKED:
            here = here & (tl.load(seen + row * seen_stride + s, here, 0) != 0)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        scores = tl.where(here[None, :], scores, -1.0e30)
        higher = tl.maximum(most, tl.max(scores, 1))
        weights = tl.where(here[None, :], tl.exp(scores - higher[:, None]), 0.0)
        kept = tl.exp(most - higher)
        whole = whole * kept + tl.sum(weights, 1)
        answer = tl.dot(weights.to(kind), value, answer * kept[:, None], input_precision="ieee")
        most = higher
    if part == 0:
        new = _turned(plain, other, cosine, sine)
        tl.store(keys + now * WIDTH + d, new)
        tl.store(values + now * WIDTH + d, given)
        score = tl.sum(query.to(tl.float32) * new.to(tl.float32)[None, :], 1) * scale
        higher = tl.maximum(most, score)
        kept, share = tl.exp(most - higher), tl.exp(score - higher)
        whole = whole * kept + share
        answer = answer * kept[:, None] + share[:, None] * given.to(tl.float32)[None, :]
        most = higher

    _summed(EARLY)
    found = row * heads + head
    at_once = found[:, None] * WIDTH + d[None, :]
    if CUTS == 1:
        tl.store(result + at_once, (answer / whole[:, None]).to(kind), real[:, None])
    else:
        here = found * CUTS + part
        tl.store(parts + here[:, None] * WIDTH + d[None, :], answer, real[:, None])
        tl.store(shares + here * 2, most, real)
        tl.store(shares + here * 2 + 1, whole, real)
        tl.debug_barrier()  # all of this program's numbers are written before it says so
        if tl.atomic_add(arrived + index, 1, sem="acq_rel", scope="gpu") == CUTS - 1:
            tl.debug_barrier()
            for one in range(EACH):
                _join(parts, shares, result, row * heads + group * EACH + one, WIDTH, CUTS)
            tl.store(arrived + index, 0)  # for the next layer


@triton.jit
def _look_alone_kernel(
    mixed, cosines, sines, at, cache, slot, seen, parts, shares, arrived, later, result,
    heads, length, seen_stride, scale,
    WIDTH: tl.constexpr, SOME: tl.constexpr, CUTS: tl.constexpr, NEAR: tl.constexpr,
    LATER: tl.constexpr, EACH_LATER: tl.constexpr, LINE: tl.constexpr,
    MASKED: tl.constexpr, FRESH: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Do the same for a head with keys of its own, by plain arithmetic; one warp waits for none."""
    _begin(EARLY)
    index, part = tl.program_id(0), tl.program_id(1)
    row, head = index // heads, index % heads
    d = tl.arange(0, WIDTH)
    half = (d + WIDTH // 2) % WIDTH
    kind = result.dtype.element_ty
    now, first, last = _slots(slot, part, SOME, CUTS)
    if not FRESH:
        cosine, sine = _angles(cosines, sines, at + row, WIDTH)
    keys = cache + (row * 2 * heads + head).to(tl.int64) * length * WIDTH
    values = keys + heads.to(tl.int64) * length * WIDTH
    # Slots so far are of earlier steps, and a step begins with kernels that wait for all before them.
    s = first + tl.arange(0, SOME)
    here = s < last
    place = s[:, None] * WIDTH + d[None, :]
    key = tl.load(keys + place, here[:, None], 0.0, cache_modifier=".cg")
    value = tl.load(values + place, here[:, None], 0.0, cache_modifier=".cg")
    if EARLY:
        _bring_slots(keys, values, first + SOME, last, WIDTH, SOME, NEAR - 1)
    _bring_later(later, index * CUTS + part, tl.num_programs(0) * CUTS, LATER, EACH_LATER, LINE)
    _wait(EARLY)
    if FRESH:
        cosine, sine = _angles(cosines, sines, at + row, WIDTH)
    if MASKED:
        seen += row * seen_stride
        here = here & (tl.load(seen + s, here, 0) != 0)
    line = mixed + row * 3 * heads * WIDTH
    own = line + head * WIDTH
    query = _turned(tl.load(own + d), tl.load(own + half), cosine, sine).to(tl.float32) * scale
    most, whole = -1.0e30, 0.0
    answer = tl.zeros((WIDTH,), tl.float32)
    if part == 0:  # the new slot itself, which nobody reads from the cache now
        own += heads * WIDTH
        new = _turned(tl.load(own + d), tl.load(own + half), cosine, sine)
        given = tl.load(own + heads * WIDTH + d)
        tl.store(keys + now * WIDTH + d, new)
        tl.store(values + now * WIDTH + d, given)
        most = tl.sum(query * new.to(tl.float32), 0)
        whole = 1.0
        answer += given.to(tl.float32)

    for start in range(first, last, SOME):
        s = start + SOME + tl.arange(0, SOME)
        following = s < last
        place = s[:, None] * WIDTH + d[None, :]
        next_key = tl.load(keys + place, following[:, None], 0.0, cache_modifier=".cg")
        next_value = tl.load(values + place, following[:, None], 0.0, cache_modifier=".cg")
        if MASKED:
            following = following & (tl.load(seen + s, following, 0) != 0)
        scores = tl.where(here, tl.sum(key.to(tl.float32) * query[None, :], 1), -1.0e30)
        higher = tl.maximum(most, tl.max(scores, 0))
        weights = tl.where(here, tl.exp(scores - higher), 0.0)
        kept = tl.exp(most - higher)
        whole = whole * kept + tl.sum(weights, 0)
        answer = answer * kept + tl.sum(weights[:, None] * value.to(tl.float32), 0)
        most = higher
        key, value, here = next_key, next_value, following

    _summed(EARLY)
    if CUTS == 1:
        tl.store(result + index * WIDTH + d, (answer / whole).to(kind))
    else:
        here = index * CUTS + part
        tl.store(parts + here * WIDTH + d, answer)
        tl.store(shares + here * 2, most)
        tl.store(shares + here * 2 + 1, whole)
        tl.debug_barrier()
        if tl.atomic_add(arrived + index, 1, sem="acq_rel", scope="gpu") == CUTS - 1:
            tl.debug_barrier()
            _join(parts, shares, result, index, WIDTH, CUTS)
            tl.store(arrived + index, 0)


@triton.jit
def _bring_slots(
    keys, values, first, last, WIDTH: tl.constexpr, SOME: tl.constexpr, TIMES: tl.constexpr
):  # fmt: skip
    """Have keys and values of a part's slots brought near, so many at once and so often."""
    lines = tl.arange(0, (WIDTH + 63) // 64) * 64
    for time in tl.static_range(TIMES):
        slots = tl.minimum(first + time * SOME + tl.arange(0, SOME), tl.maximum(last - 1, 0))
        near = slots[:, None] * WIDTH + lines[None, :]
        _bring_near(keys + near)
        _bring_near(values + near)


@triton.jit
def _slots(slot, part, SOME: tl.constexpr, CUTS: tl.constexpr):
    """Return the new slot, and which of those before it are a part's: from the first to before the last."""
    # A step begins with kernels that wait for all before them, but the nearest cache may hold what was there.
    now = tl.load(slot, cache_modifier=".cg")
    size = tl.cdiv(tl.cdiv(now, CUTS), SOME) * SOME
    return now, part * size, tl.minimum(part * size + size, now)


@triton.jit
def _angles(cosines, sines, at, WIDTH: tl.constexpr):
    """Return the cosines and sines of a row's new slot [WIDTH]; past the nearest cache, as for `_slots`."""
    angle = tl.load(at, cache_modifier=".cg") * WIDTH + tl.arange(0, WIDTH)
    return tl.load(cosines + angle).to(tl.float32), tl.load(sines + angle).to(tl.float32)


@triton.jit
def _join(parts, shares, result, head, WIDTH: tl.constexpr, CUTS: tl.constexpr):
    """Write what a head of a row sees: the parts of the slots by their shares."""
    c, d = tl.arange(0, CUTS), tl.arange(0, WIDTH)
    peaks = tl.load(shares + (head * CUTS + c) * 2, cache_modifier=".cg")
    sums = tl.load(shares + (head * CUTS + c) * 2 + 1, cache_modifier=".cg")
    theirs = tl.load(parts + (head * CUTS + c[:, None]) * WIDTH + d[None, :], cache_modifier=".cg")
    factors = tl.exp(peaks - tl.max(peaks, 0))
    total = tl.sum(theirs * factors[:, None], 0) / tl.sum(sums * factors, 0)
    tl.store(result + head * WIDTH + d, total.to(result.dtype.element_ty))


@triton.jit
def _turned(plain, other, cosine, sine):
    """Return heads turned by their position, rounded as often as without kernels."""
    kind = plain.dtype
    one = (plain.to(tl.float32) * cosine).to(kind).to(tl.float32)
    return (one + (other.to(tl.float32) * sine).to(kind).to(tl.float32)).to(kind)


def product(
    source: Tensor,
    weight: Tensor,
    *,
    norm: Tensor | None = None,
    squares: Tensor | None = None,
    epsilon: float = 0.0,
    added: Tensor | None = None,
    gated: bool = False,
    later: Tensor | None = None,
    arrived: Tensor | None = None,
    shape: Shape | None = None,
) -> Tensor:
    """Return rows [B, K] times a weight [N, K], in the rows' dtype.

    Args:
        source: the rows.
        weight: in the rows' dtype.
        norm: weight [K] of a root-mean-square norm of the rows before.
        squares: instead of `norm`, of more than `FEW` rows, which are then what `carrying` made of rows: the
            sums of those rows' squares [P, B].
        epsilon: of the norm.
        added: what is added [B, N].
        gated: the weight's first half are gates of its second, [2 N, K]: answer silu(gates) * others.
        later: numbers one after another that later kernels read, and nobody writes; brought near.
        arrived: zeros (int32), at least one for every 16 outputs, which it leaves behind as zeros; without
            them inputs are not cut in parts.
        shape: how to cut it; None for the measured way.
    """
    source, added = source.contiguous(), None if added is None else added.contiguous()
    rows, inputs = source.shape
    outputs = len(weight) // 2 if gated else len(weight)
    result = source.new_empty(rows, outputs)
    if rows > FEW:
        if norm is not None:
            source = normed(source, norm, epsilon)
        _dots(source, weight, result, squares, epsilon, added, gated, later, arrived, shape)
        return result
    early = _early(source.device, rows)
    size = weight.element_size()
    cut = shape or _shape(rows, outputs, inputs, gated, size)
    grid = (triton.cdiv(outputs, cut.outputs),)
    _rows_kernel[grid](
        source, weight, norm, added, later, result, outputs, epsilon,
        inputs, rows, cut.outputs, cut.inputs, min(cut.inputs, VECTOR // size),
        *_brought(later, early, grid[0]),
        NORMED=norm is not None, GATED=gated, ADDED=added is not None, EARLY=early,
        num_warps=cut.warps, **_launch(early, cut),
    )  # fmt: skip
    return result


def carrying(
    source: Tensor,
    weight: Tensor,
    added: Tensor,
    following: Tensor,
    *,
    later: Tensor | None = None,
    arrived: Tensor | None = None,
    shape: Shape | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Multiply more than `FEW` rows, and carry what the next product needs of a norm before it.

    The norm then takes no kernel of its own. The rows times its weight must fit their dtype, before anything
    has made them smaller.

    Args:
        source: rows [B, K].
        weight: [N, K].
        added: what is added [B, N].
        following: weight [N] of the norm.
        later: see `product`.
        arrived: see `product`.
        shape: see `product`.

    Returns:
        What `product` does, the same times the norm's weight, and its squares summed up, 16 outputs at a
        time [P, B].
    """
    source, rows = source.contiguous(), len(source)
    result, weighted = (source.new_empty(rows, len(weight)) for _ in range(2))
    squares = source.new_empty(triton.cdiv(len(weight), BLOCK), rows, dtype=torch.float32)
    carried = (following, weighted, squares)
    _dots(source, weight, result, None, 0.0, added.contiguous(), False, later, arrived, shape, carried)
    return result, weighted, squares


def _dots(
    source: Tensor,
    weight: Tensor,
    result: Tensor,
    squares: Tensor | None,
    epsilon: float,
    added: Tensor | None,
    gated: bool,
    later: Tensor | None,
    arrived: Tensor | None,
    shape: Shape | None,
    carried: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None),
) -> None:
    """Multiply on the tensor cores; `carried` are a norm's weight, and what is written for it."""
    (rows, inputs), outputs = source.shape, result.shape[1]
    early, blocks = _early(source.device, rows), 0 if squares is None else len(squares)
    cut = shape or _shape(rows, outputs, inputs, gated, weight.element_size())
    parts = 1 if arrived is None else cut.parts
    grid = (triton.cdiv(outputs, cut.outputs), parts)
    padded, summed = max(16, triton.next_power_of_2(rows)), None
    if parts > 1:
        numbers = parts * (1 + gated) * padded * outputs
        summed = torch.empty(numbers, dtype=torch.float32, device=source.device)
    following, weighted, made = carried
    _dots_kernel[grid](
        source, weight, squares, added, following, later, result, weighted, made, summed, arrived,
        outputs, rows, blocks, epsilon,
        inputs, padded, cut.outputs, cut.inputs, cut.stages,
        parts, triton.cdiv(triton.cdiv(inputs, parts), cut.inputs) * cut.inputs,
        cut.near // (cut.outputs * LINE * (1 + gated)), blocks and triton.next_power_of_2(blocks), BLOCK,
        *_brought(later, early, grid[0] * parts),
        GATED=gated, ADDED=added is not None, CARRIED=made is not None, EARLY=early,
        num_warps=cut.warps, **_launch(early, cut),
    )  # fmt: skip


def normed(source: Tensor, norm: Tensor, epsilon: float) -> Tensor:
    """Return rows [B, K] normed by their root mean square, and times a weight [K]."""
    source = source.contiguous()
    result = torch.empty_like(source)
    rows, inputs = source.shape
    whole, early = triton.next_power_of_2(inputs), _early(source.device, rows)
    _norm_kernel[rows,](source, norm, result, epsilon, inputs, whole, early, num_warps=4, **_launch(early))
    return result


@functools.cache
def _early(device: torch.device, rows: int) -> int:
    """Return when the kernel after one of so many rows may begin; on GPUs before Hopper it cannot choose.

    Of few rows, kernels fill a multiprocessor's memory but little: many of them may stand by.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (9, 0):
        return NOT
    return AT_ONCE if rows <= FEW else LATE


def _brought(later: Tensor | None, early: int, programs: int) -> tuple[int, int, int]:
    """Return lines that programs bring near for later kernels, how many at once, and a line's numbers."""
    if later is None or not early:
        return 0, 1, 1
    numbers = LINE // later.element_size()
    lines = triton.cdiv(later.numel(), numbers)
    return lines, min(128, max(32, triton.next_power_of_2(triton.cdiv(lines, programs)))), numbers


def _launch(early: int, cut: Shape | None = None) -> dict[str, Any]:
    registers = cut.registers if cut and early else None
    return {**({"launch_pdl": True} if early else {}), **({"maxnreg": registers} if registers else {})}


def _shape(rows: int, outputs: int, inputs: int, gated: bool, size: int) -> Shape:
    """Return what was quickest on an H200, of Janus-1.3B's products, as far as it fits."""
    if rows <= FEW:
        if rows > 2:
            cut = Shape(4, 1024, 4) if gated else Shape(4 if max(outputs, inputs) > 4096 else 2, 512, 2)
        elif gated:
            cut = Shape(2, 2048, 4)
        elif inputs > 4096:
            cut = Shape(2, 2048, 2)
        else:
            cut = Shape(4, 1024, 4) if outputs > 4096 else Shape(2, 1024, 1)
        return cut._replace(inputs=min(cut.inputs, triton.next_power_of_2(inputs)))
    plain = Shape(16, 512, 4, 3) if inputs > 4096 else Shape(16, 256, 2, 4)
    cut = Shape(64, 64, 4, 5) if gated else plain
    lines = cut.outputs * (1 + gated) + triton.next_power_of_2(rows)
    while lines * cut.inputs * cut.stages * size > SHARED:
        cut = cut._replace(inputs=cut.inputs // 2)
    return cut


def look(
    mixed: Tensor,
    cosines: Tensor,
    sines: Tensor,
    at: Tensor,
    cache: Tensor,
    slot: Tensor,
    seen: Tensor | None,
    arrived: Tensor,
    heads: int,
    scale: float,
    later: Tensor | None = None,
    fresh: bool = True,
    way: Look | None = None,
) -> Tensor:
    """Return what one new slot a row sees [B, H * D]; writes its key and value to the cache.

    Args:
        mixed: queries, keys and values of the slot [B, (H + 2 G) * D].
        cosines, sines: of every position [L, D], the first half of the sines negated.
        at: position of each row's slot [B].
        cache: keys, then values of every slot [B, 2 G, L, D].
        slot: where the new slot lies [1].
        seen: which slots before it count [B, 1, 1, >= slot] (bool); None for all.
        arrived: zeros [B * H] (int32), which it leaves behind as zeros.
        heads: H.
        scale: factor of the scores.
        later: see `product`.
        fresh: whether the kernel just ahead, or one ahead that waits for nobody, may have written `at`: it is
            read once that has ended, else at once.
        way: how to cut it; None for the measured way.
    """
    mixed = mixed.contiguous()
    rows, both, length, width = cache.shape
    groups = both // 2
    each, programs = heads // groups, rows * groups
    cut = way or _look_way(rows, heads, groups, width, cache.element_size())
    result = mixed.new_empty(rows, heads * width)
    numbers = rows * heads * cut.cuts if cut.cuts > 1 else 0
    parts, shares = (
        torch.empty(numbers * size, dtype=torch.float32, device=mixed.device) for size in (width, 2)
    )
    early = _early(mixed.device, rows)
    tensors = (mixed, cosines, sines, at, cache, slot, seen, parts, shares, arrived, later, result)
    strides = (length, 0 if seen is None else seen.stride(0), scale)
    more = (*_brought(later, early, programs * cut.cuts), seen is not None, fresh, early)
    options = {"num_warps": cut.warps, **_launch(early)}
    if cut.alone:
        _look_alone_kernel[programs, cut.cuts](
            *tensors, heads, *strides, width, cut.some, cut.cuts, cut.near, *more, **options
        )
    else:
        tile = max(16, triton.next_power_of_2(each))
        _look_kernel[programs, cut.cuts](
            *tensors, heads, groups, *strides, each, tile, width, cut.some, cut.cuts, cut.stages, cut.near,
            *more, **options,
        )  # fmt: skip
    return result


def _look_way(rows: int, heads: int, groups: int, width: int, size: int) -> Look:
    """Return what was quickest on an H200, of Janus-1.3B's heads."""
    cuts = min(CUT, max(1, triton.next_power_of_2(PROGRAMS // (rows * groups))))
    if heads == groups and rows <= FEW:
        return Look(True, 16, cuts, 1)
    return Look(False, 32 if width * size <= 512 else 16, cuts, 4, 3)
