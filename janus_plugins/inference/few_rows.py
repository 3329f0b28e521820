"""Products of a few rows with a weight in a compiled step on a CPU: innermost loops that Inductor generates.

Such a product is as fast as the weight comes from memory, and a core keeps more of it under way when it
reads several places in turn: from four places of one block of the weight it gets a third more each second
than from one, which is how Inductor's own loops read (benchmarks/products.py). A weight in 8 bits comes
quicker than it is converted: there each input is converted once, and more outputs are summed up at once.
Everything around the innermost loops stays Inductor's: the order in which weights lie, threads, what
follows a product. Products of more rows, which take what they need from a cache, stay its own altogether,
and so do all on CPUs without AVX2.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch


class _Weights(NamedTuple):
    """Say how weights of one kind are met.

    Attributes:
        inputs: what they are multiplied with. All is summed up in fp32.
        streams: places of a block that are read in turn.
        whole: the number of inputs must be a multiple of it. Of blocks that fit, Inductor takes the largest;
            its own for 8 bits count so many inputs.
    """

    inputs: torch.dtype
    streams: int
    whole: int


_WEIGHTS = {
    torch.float32: _Weights(torch.float32, 4, 1),
    torch.bfloat16: _Weights(torch.bfloat16, 4, 1),
    torch.int8: _Weights(torch.bfloat16, 1, 64),  # which wait for conversions, not for memory
}

_VECTORS = {1: 4, 2: 4, 3: 4, 4: 2}
"""By rows, vectors of outputs summed up at once: their sums fill 4 to 12 of a core's 16 registers."""

_CONVERTED = 128
"""Inputs of a row and stream that are converted to fp32 at once; they stay in the nearest cache."""

_WHOLE = 1 << 20
"""More inputs than any weight has: a block holds all of its outputs' inputs."""

_LOOPS = r"""
template <int64_t ROWS, bool accum>
inline void {{kernel_name}}_rows(
    const {{input_t}}* {{restrict_keyword}} A,
    const {{input2_t}}* {{restrict_keyword}} B,
    {{output_t}}* {{restrict_keyword}} C,
    int64_t K,
    int64_t lda,
    int64_t ldb,
    int64_t ldc
) {
    using Vector = at::vec::Vectorized<float>;
    constexpr int64_t COLUMNS = {{outputs}} / Vector::size();
    Vector sums[ROWS][COLUMNS];
    {{unroll}}
    for (int64_t row = 0; row < ROWS; ++row) {
        {{unroll}}
        for (int64_t column = 0; column < COLUMNS; ++column) {
            sums[row][column] = accum ? Vector::loadu(C + row * ldc + column * Vector::size()) : Vector(0.0f);
        }
    }
    // Add the products of input `k`, of which row `row` holds `rows[row * step]`.
    auto add = [&](const auto* rows, int64_t step, int64_t k) __attribute__((always_inline)) {
        Vector given[ROWS];
        {{unroll}}
        for (int64_t row = 0; row < ROWS; ++row) {
            given[row] = Vector(static_cast<float>(rows[row * step]));
        }
        Vector weights[COLUMNS];
        const auto* place = B + k * ldb;
{%- if input2_dtype == torch.bfloat16 %}
        {{unroll}}
        for (int64_t column = 0; column < COLUMNS; column += 2) {
            const auto both = at::vec::Vectorized<{{input2_t}}>::loadu(place + column * Vector::size());
            std::tie(weights[column], weights[column + 1]) = at::vec::convert_bfloat16_float(both);
        }
{%- else %}
        {{unroll}}
        for (int64_t column = 0; column < COLUMNS; ++column) {
{%- if input2_dtype == torch.int8 %}
            const auto whole = at::vec::convert_to_int32<int8_t>(place + column * Vector::size());
            weights[column] = at::vec::convert<float>(whole);
{%- else %}
            weights[column] = Vector::loadu(place + column * Vector::size());
{%- endif %}
        }
{%- endif %}
        {{unroll}}
        for (int64_t column = 0; column < COLUMNS; ++column) {
            {{unroll}}
            for (int64_t row = 0; row < ROWS; ++row) {
                sums[row][column] = at::vec::fmadd(given[row], weights[column], sums[row][column]);
            }
        }
    };
    const int64_t part = K / {{streams}};
{%- if input_dtype == torch.float32 %}
    for (int64_t k = 0; k < part; ++k) {
        {{unroll}}
        for (int64_t stream = 0; stream < {{streams}}; ++stream) {
            add(A + stream * part + k, lda, stream * part + k);
        }
    }
{%- else %}
    // Converting an input each time that it is met would take longer.
    using Given = at::vec::Vectorized<{{input_t}}>;
    constexpr int64_t SOME = {{some}};
    float converted[{{streams}}][ROWS][SOME];
    for (int64_t first = 0; first < part; first += SOME) {
        const int64_t count = std::min(SOME, part - first);
        for (int64_t stream = 0; stream < {{streams}}; ++stream) {
            for (int64_t row = 0; row < ROWS; ++row) {
                const auto* from = A + row * lda + stream * part + first;
                float* to = converted[stream][row];
                for (int64_t k = 0; k < count; k += Given::size()) {
                    const auto both = Given::loadu(from + k, std::min<int64_t>(Given::size(), count - k));
                    const auto [one, other] = at::vec::convert_to_float<{{input_t}}>(both);
                    one.store(to + k);
                    other.store(to + k + Vector::size());
                }
            }
        }
        for (int64_t k = 0; k < count; ++k) {
            {{unroll}}
            for (int64_t stream = 0; stream < {{streams}}; ++stream) {
                add(&converted[stream][0][k], SOME, stream * part + first + k);
            }
        }
    }
{%- endif %}
    for (int64_t k = {{streams}} * part; k < K; ++k) {
        add(A + k, lda, k);
    }
    {{unroll}}
    for (int64_t row = 0; row < ROWS; ++row) {
        {{unroll}}
        for (int64_t column = 0; column < COLUMNS; ++column) {
            sums[row][column].store(C + row * ldc + column * Vector::size());
        }
    }
}
{{declare_kernel}} {
    {{kernel.assert_function}}(N == {{outputs}}, "a whole block of outputs");
    switch (M) {
{%- for count in range(1, rows + 1) %}
    case {{count}}:
        return {{kernel_name}}_rows<{{count}}, accum>(A, B, C, K, lda, ldb, ldc);
{%- endfor %}
    default:
        {{kernel.assert_function}}(false, "too many rows");
    }
}
"""


@contextmanager
def few_rows(rows: int) -> Iterator[None]:
    """Let what is compiled meanwhile multiply up to `rows` rows in this way, if it knows how to for so many.

    It asks for parts of Inductor that torch does not promise to keep; without them nothing changes.
    """
    try:
        known = _writing().micro_gemm_configs
        ours = {_product(): _configs()}
    except (ImportError, AttributeError):
        ours = {}
    if not ours or rows > max(_VECTORS) or sys.platform == "win32":
        yield
        return
    import torch._inductor.config as inductor
    import torch.compiler.config as compiler

    before = dict(known)
    # Of two ways that rank the same, Inductor takes the first.
    _refill(known, {**ours, **before})
    # Code is found again on disk by the settings it was made with.
    made_of = repr((_LOOPS, _WEIGHTS, _VECTORS, _CONVERTED))
    tag = compiler.cache_key_tag + hashlib.sha256(made_of.encode()).hexdigest()
    blocks = f"{max(_VECTORS)},1,{_WHOLE}"
    try:
        with inductor.patch({"cpp.gemm_cache_blocking": blocks}), compiler.patch(cache_key_tag=tag):  # type: ignore[attr-defined]
            yield
    finally:
        _refill(known, before)


def _refill(known: dict[Any, Any], values: dict[Any, Any]) -> None:
    known.clear()
    known.update(values)


def _writing() -> Any:
    """Return the module of Inductor's that writes innermost loops."""
    from torch._inductor import lowering  # noqa: F401 (the other can only be imported after this one)
    from torch._inductor.codegen import cpp_micro_gemm

    return cpp_micro_gemm


@functools.cache
def _product() -> type[Any]:
    """Return the class that writes the innermost loops."""
    product: type[Any] = _writing().CppMicroGemm
    from torch._inductor.codegen.common import KernelTemplate

    class FewRows(product):  # type: ignore[misc]
        def codegen_define(self, kernel: Any) -> str:
            rows, outputs, _ = self.register_blocking
            options = {
                **self.get_common_options(),
                "declare_kernel": self.get_kernel_declaration(),
                "kernel": kernel,
                "rows": rows,
                "outputs": outputs,
                "streams": _WEIGHTS[self.input2_dtype].streams,
                "some": _CONVERTED,
                "unroll": kernel.unroll_pragma(16),
            }
            return str(KernelTemplate._template_from_string(_LOOPS).render(options))

    return FewRows


@functools.cache
def _configs() -> list[Any]:
    """Return what products the loops are for."""
    from torch._inductor import cpu_vec_isa

    made: list[Any] = []
    for isa, lanes in ((cpu_vec_isa.VecAVX2, 8), (cpu_vec_isa.VecAVX512, 16)):
        for rows, vectors in _VECTORS.items():
            for dtype, weights in _WEIGHTS.items():
                made += _writing().generate_gemm_config(
                    isa,
                    [(rows, vectors * lanes, weights.whole)],
                    input_dtype=weights.inputs,
                    input2_dtype=dtype,
                    output_dtype=torch.float32,
                    extra_check=_fits,
                )
    return made


def _fits(
    config: Any,
    rows: int,
    outputs: int,
    inputs: int,
    alpha: float,
    *_: Any,
    dynamic_M: bool = False,
    **__: Any,
) -> bool:
    block = config.register_blocking
    whole = outputs % block.block_n == 0 and inputs % block.block_k == 0
    return not dynamic_M and alpha == 1 and rows == block.block_m and whole
