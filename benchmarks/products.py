"""Measure products of two rows with the weights of a language model, as a compiled step makes them on a CPU.

Run `OMP_NUM_THREADS=1 python -m benchmarks.products`: 24 layers of 1,024 channels, in fp32 (415 MB) and in 8
bits (104 MB), compiled with our innermost loops (`janus_plugins/inference/few_rows.py`) and with Inductor's
own, beside reading as many bytes and doing no more. Results must be equal to rounding.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from benchmarks import harness
from janus_plugins.inference.few_rows import few_rows
from janus_plugins.inference.graph import INDUCTOR
from janus_plugins.inference.linears import In8Bits

WIDTH, INNER, BLOCKS = 1024, 2816, 12


class Blocks(nn.Module):
    """Run the gated layers of a language model's blocks, one after another."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.ModuleList(nn.Linear(WIDTH, 2 * INNER, bias=False) for _ in range(BLOCKS))
        self.down = nn.ModuleList(nn.Linear(INNER, WIDTH, bias=False) for _ in range(BLOCKS))

    def forward(self, rows: Tensor) -> Tensor:
        """Return rows [B, WIDTH] of rows."""
        for up, down in zip(self.up, self.down, strict=True):
            gate, value = up(rows).chunk(2, -1)
            rows = rows + down(silu(gate) * value)
        return rows


def in_8_bits() -> Blocks:
    """Return the blocks with the products of `linears="int8"`."""
    blocks = Blocks()
    for layers in (blocks.up, blocks.down):
        for index, layer in enumerate(layers):
            assert isinstance(layer, nn.Linear)
            layers[index] = In8Bits(layer.weight.detach(), None)
    return blocks


def compiled(blocks: Blocks, rows: Tensor, most: int) -> Callable[[], Tensor]:
    """Return the layers compiled, with our loops for products of up to `most` rows."""
    import torch._inductor.config as inductor

    step = torch.compile(blocks.eval(), dynamic=False)

    def run() -> Tensor:
        made: Tensor = step(rows)
        return made

    with inductor.patch(INDUCTOR), few_rows(most):
        run()
    return run


def measure(make: Callable[[], Blocks], what: str, rounds: int, tolerance: float) -> harness.Comparison:
    """Compare both ways and reading for blocks of one kind."""
    rows = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(1))
    blocks = make()
    weights = [*blocks.parameters()] or [each for each in blocks.buffers() if each.dtype == torch.int8]
    num_bytes = sum(each.nbytes for each in weights)
    read = "the weights are read, and no more"
    theirs, ours = compiled(make(), rows, 99), compiled(blocks, rows, 2)
    torch.testing.assert_close(ours(), theirs(), atol=tolerance, rtol=tolerance)
    ways = {"ours": ours, "Inductor's own loops": theirs, read: harness.reading(num_bytes)}
    name = f"products of 2 rows with {num_bytes / 1e6:.0f} MB, {what}"
    made = harness.compare(name, ways, rounds)
    made.counts = {f"GB/s, {way}": num_bytes / made.median(way) / 1e9 for way in ways}
    return made


@torch.no_grad()
def main() -> int:
    """Measure both kinds of weights."""
    given = harness.options(__doc__ or "").parse_args()
    torch.set_num_threads(1)
    made = [
        measure(Blocks, "fp32", 4 * given.rounds, 1e-4),
        measure(in_8_bits, "8 bits", 4 * given.rounds, 5e-2),  # inputs are rounded to bf16
    ]
    return harness.report("products", made, given.force)


if __name__ == "__main__":
    sys.exit(main())
