"""Random numbers of a batch of rows: one stream a row, from a seed a row. Pure functions of integers.

A row's numbers are a function of its own seed and of how many it has drawn, computed with integer
arithmetic on the device that uses them: they do not depend on the row's batch mates, on the size of
the batch, on the device, or on torch's global random state, and drawing them keeps no host waiting.

The generator is SplitMix64 (Steele, Lea and Flood 2014), read at positions: number i of a stream is
`mix(seed + (i + 1) * golden)`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_NORMAL_STREAM = 0xD1B54A32D192ED03
_BLOCK = 1024


def row_seed(seed: int, prompt: str, number: int) -> int:
    """Return the 64-bit seed of item `number` of a prompt: a hash of the three and of nothing else."""
    text = f"{seed}\0{number}\0{prompt}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def uniforms(seeds: Tensor, first: int | Tensor, count: int) -> Tensor:
    """Return numbers `first` to `first + count - 1` of each stream, in [0, 1): [B, count] float32.

    Args:
        seeds: 64 bits a row, as int64 [B].
        first: position in the stream, or one a row [B, 1].
        count: how many numbers.
    """
    position = torch.arange(1, count + 1, device=seeds.device, dtype=torch.int64) + first
    mixed = _mix(seeds[:, None] + position * _signed(_GOLDEN))
    return _shifted(mixed, 40).to(torch.float32) * 2.0**-24


def normals(seeds: Tensor, first: int, count: int) -> Tensor:
    """Return standard normal numbers of each stream, by Box and Muller: [B, count] float32."""
    pairs = uniforms(seeds, 2 * first, 2 * count).double().view(len(seeds), count, 2)
    radius = torch.sqrt(-2.0 * torch.log1p(-pairs[..., 0]))
    return (radius * torch.cos(2.0 * math.pi * pairs[..., 1])).float()


class SeededDraws:
    """Draw for a batch, one stream a row: implements `core.contracts.Draws`."""

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self._seeds = torch.tensor([_signed(seed) for seed in seeds], dtype=torch.int64, device=device)
        self._normal_seeds = _mix(self._seeds ^ _signed(_NORMAL_STREAM))
        self._block = uniforms(self._seeds, 0, _BLOCK)
        self._uniforms_drawn = 0
        self._begun = torch.zeros(len(seeds), 1, dtype=torch.int64, device=device)
        self._normals_drawn = 0

    def uniform(self) -> Tensor:
        """Return the next number of each row in [0, 1): [B] float32."""
        column = self._uniforms_drawn % _BLOCK
        if column == 0 and self._uniforms_drawn:
            self._block = uniforms(self._seeds, self._uniforms_drawn - self._begun, _BLOCK)
        self._uniforms_drawn += 1
        return self._block[:, column]

    def replace(self, rows: Sequence[int], seeds: Sequence[int]) -> None:
        """Begin the named rows anew, with other seeds: for choices that draw even numbers only."""
        for row, seed in zip(rows, seeds, strict=True):
            self._seeds[row] = _signed(seed)
            self._begun[row] = self._uniforms_drawn
        first = (self._uniforms_drawn - 1) // _BLOCK * _BLOCK if self._uniforms_drawn else 0
        self._block = uniforms(self._seeds, first - self._begun, _BLOCK)

    def ahead(self, steps: int, each: int, normal_each: int) -> tuple[Tensor, Tensor]:
        """Return the numbers of the first `steps` steps: [B, steps, each] and [B, steps, normal_each]."""
        rows = len(self._seeds)
        even = uniforms(self._seeds, 0, steps * each).view(rows, steps, each)
        return even, normals(self._normal_seeds, 0, steps * normal_each).view(rows, steps, normal_each)

    def normal(self, *shape: int) -> Tensor:
        """Return the next standard normal numbers of each row: [B, *shape] float32."""
        count = math.prod(shape)
        drawn = normals(self._normal_seeds, self._normals_drawn, count)
        self._normals_drawn += count
        return drawn.view(-1, *shape)


def _signed(value: int) -> int:
    """Return the low 64 bits as a signed integer, which is what torch stores."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def _shifted(value: Tensor, bits: int) -> Tensor:
    """Shift right by `bits`, filling with zeros (torch fills with the sign)."""
    shifted: Tensor = (value >> bits) & (2 ** (64 - bits) - 1)
    return shifted


def _mix(value: Tensor) -> Tensor:
    """Scramble 64 bits (SplitMix64's finaliser; int64 products wrap around)."""
    once: Tensor = (value ^ _shifted(value, 30)) * _signed(_MIX_1)
    twice: Tensor = (once ^ _shifted(once, 27)) * _signed(_MIX_2)
    return twice ^ _shifted(twice, 31)
