"""Products of a few rows with a weight in a compiled step on a CPU: innermost loops that Inductor generates.

Such a product is as fast as the weight comes from memory, and a core keeps more of it under way when it
reads several places in turn: from four places of one block of the weight it gets a third more each second
than from one, which is how Inductor's own loops read (benchmarks/products.py). Everything around the
innermost loops stays Inductor's: the order in which weights lie, threads, what follows a product. Products
of more rows, which take what they need from a cache, stay its own altogether, and so do all on CPUs without
AVX2.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

STREAMS = 4
"""Places of a block that are read in turn."""

_VECTORS = {1: 4, 2: 4, 3: 4, 4: 2}
"""By rows, vectors of outputs summed up at once: their sums fill 4 to 12 of a core's 16 registers."""

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
    auto add = [&](int64_t k) __attribute__((always_inline)) {
        Vector given[ROWS];
        {{unroll}}
        for (int64_t row = 0; row < ROWS; ++row) {
            given[row] = Vector(static_cast<float>(A[row * lda + k]));
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
            weights[column] = Vector::loadu(place + column * Vector::size());
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
    for (int64_t k = 0; k < part; ++k) {
        {{unroll}}
        for (int64_t stream = 0; stream < {{streams}}; ++stream) {
            add(stream * part + k);
        }
    }
    for (int64_t k = {{streams}} * part; k < K; ++k) {
        add(k);
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
    made_of = repr((_LOOPS, STREAMS, _VECTORS))
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
                "streams": STREAMS,
                "unroll": kernel.unroll_pragma(16),
            }
            return str(KernelTemplate._template_from_string(_LOOPS).render(options))

    return FewRows


@functools.cache
def _configs() -> list[Any]:
    """Return what products the loops are for: of fp32 or bf16, summed up in fp32."""
    from torch._inductor import cpu_vec_isa

    made: list[Any] = []
    for isa, lanes in ((cpu_vec_isa.VecAVX2, 8), (cpu_vec_isa.VecAVX512, 16)):
        for rows, vectors in _VECTORS.items():
            for dtype in (torch.float32, torch.bfloat16):
                made += _writing().generate_gemm_config(
                    isa,
                    [(rows, vectors * lanes, 1)],
                    input_dtype=dtype,
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
    return not dynamic_M and alpha == 1 and rows == block.block_m and outputs % block.block_n == 0
