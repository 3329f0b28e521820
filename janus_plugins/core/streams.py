"""Random numbers as pure functions of a seed and a position, the same on every device.

Integer arithmetic on the device that uses them: they do not depend on batch mates, on the size of a batch,
or on torch's global random state, and drawing them keeps no host waiting. torch is imported inside.

The generator is SplitMix64 (Steele, Lea and Flood 2014), read at positions: number i of a stream is
`mix(seed + (i + 1) * golden)`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def uniforms(seeds: Tensor, first: int | Tensor, count: int) -> Tensor:
    """Return numbers `first` to `first + count - 1` of each stream, in [0, 1): [B, count] float32.

    Args:
        seeds: 64 bits a row, as int64 [B].
        first: position in the stream, or one a row [B, 1].
        count: how many numbers.
    """
    import torch

    position = torch.arange(1, count + 1, device=seeds.device, dtype=torch.int64) + first
    mixed = mix(seeds[:, None] + position * signed(_GOLDEN))
    return _shifted(mixed, 40).to(torch.float32) * 2.0**-24


def normals(seeds: Tensor, first: int, count: int) -> Tensor:
    """Return standard normal numbers of each stream, by Box and Muller: [B, count] float32."""
    import torch

    pairs = uniforms(seeds, 2 * first, 2 * count).double().view(len(seeds), count, 2)
    radius = torch.sqrt(-2.0 * torch.log1p(-pairs[..., 0]))
    return (radius * torch.cos(2.0 * math.pi * pairs[..., 1])).float()


def content_seeds(values: Tensor) -> Tensor:
    """Return a seed for each of N items [N, ...] (float32), a hash of its own numbers: [N] (int64)."""
    import torch

    bits = values.detach().float().contiguous().flatten(1).view(torch.int32).long()
    places = torch.arange(1, bits.shape[1] + 1, device=bits.device, dtype=torch.int64)
    return mix((bits * mix(places * signed(_GOLDEN))).sum(1))


def signed(value: int) -> int:
    """Return the low 64 bits as a signed integer, which is what torch stores."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def mix(value: Tensor) -> Tensor:
    """Scramble 64 bits (SplitMix64's finaliser; int64 products wrap around)."""
    once: Tensor = (value ^ _shifted(value, 30)) * signed(_MIX_1)
    twice: Tensor = (once ^ _shifted(once, 27)) * signed(_MIX_2)
    return twice ^ _shifted(twice, 31)


def _shifted(value: Tensor, bits: int) -> Tensor:
    """Shift right by `bits`, filling with zeros (torch fills with the sign)."""
    shifted: Tensor = (value >> bits) & (2 ** (64 - bits) - 1)
    return shifted
