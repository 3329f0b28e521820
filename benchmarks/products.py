"""Measure products of two rows with the weights of a language model, as a compiled step makes them on a CPU.

Run `OMP_NUM_THREADS=1 python -m benchmarks.products`: 24 layers of 1,024 channels, 415 MB in fp32, compiled
with our innermost loops (`janus_plugins/inference/few_rows.py`) and with Inductor's own, beside reading as
many bytes and doing no more. Results must be equal to rounding.
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


def compiled(rows: Tensor, most: int) -> Callable[[], Tensor]:
    """Return the layers compiled, with our loops for products of up to `most` rows."""
    import torch._inductor.config as inductor

    step = torch.compile(Blocks().eval(), dynamic=False)

    def run() -> Tensor:
        made: Tensor = step(rows)
        return made

    with inductor.patch(INDUCTOR), few_rows(most):
        run()
    return run


@torch.no_grad()
def main() -> int:
    """Compare both ways and reading."""
    given = harness.options(__doc__ or "").parse_args()
    torch.set_num_threads(1)
    rows = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(1))
    num_bytes = sum(each.nbytes for each in Blocks().parameters())
    read = "the weights are read, and no more"
    theirs, ours = compiled(rows, 99), compiled(rows, 2)
    torch.testing.assert_close(ours(), theirs(), atol=1e-4, rtol=1e-4)
    ways = {"ours": ours, "Inductor's own loops": theirs, read: harness.reading(num_bytes)}
    made = harness.compare(f"products of 2 rows with {num_bytes / 1e6:.0f} MB", ways, 4 * given.rounds)
    made.counts = {f"GB/s, {way}": num_bytes / made.median(way) / 1e9 for way in ways}
    return harness.report("products", [made], given.force)


if __name__ == "__main__":
    sys.exit(main())
