"""Random numbers of a batch of rows: one stream a row, from a seed a row (`core/streams.py`)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from janus_plugins.core.streams import mix, normals, signed, uniforms

_NORMAL_STREAM = 0xD1B54A32D192ED03
_BLOCK = 1024


def row_seed(seed: int, prompt: str, number: int) -> int:
    """Return the 64-bit seed of item `number` of a prompt: a hash of the three and of nothing else."""
    text = f"{seed}\0{number}\0{prompt}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


class SeededDraws:
    """Draw for a batch, one stream a row: implements `core.contracts.Draws`."""

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self._seeds = torch.tensor([signed(seed) for seed in seeds], dtype=torch.int64, device=device)
        self._normal_seeds = mix(self._seeds ^ signed(_NORMAL_STREAM))
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
            self._seeds[row] = signed(seed)
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
