"""Order without memory: permutations by arithmetic, and shares that come out even.

No shuffle buffer is used anywhere: a position in a source's endless sequence of epochs is turned
into an index by a keyed bijection, so that a reader can start anywhere and nothing is lost or
repeated (a buffer loses samples when resumed).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from fractions import Fraction
from math import floor

_ROUNDS = 4
_MASK64 = (1 << 64) - 1


def key_of(*parts: object) -> int:
    """Hash parts to 64 bits, the same ones in every process."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def permuted(index: int, size: int, key: int) -> int:
    """Return where a permutation of range(size), chosen by `key`, sends `index`.

    A balanced Feistel network on the next even number of bits, walked until it lands inside
    (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). Takes no memory.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for step in range(_ROUNDS):
            left, right = right, left ^ (_mixed(right, key + step) & mask)
        index = (left << half) | right
        if index < size:
            return index


def _mixed(value: int, key: int) -> int:
    """Mix 64 bits (the finaliser of splitmix64)."""
    mixed = (value * 0x9E3779B97F4A7C15 + key * 0xD1342543DE82EF95) & _MASK64
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK64
    return mixed ^ (mixed >> 31)


def apportion(
    count: int, weights: Mapping[str, Fraction], owed: Mapping[str, Fraction]
) -> tuple[dict[str, int], dict[str, Fraction]]:
    """Split `count` by weight into whole numbers, each within 1 of its exact share.

    What rounding withholds is owed, and whoever is owed most is rounded up next time, so that
    the shares over many calls come out exact.

    Args:
        count: how many to split.
        weights: relative shares; the order breaks ties.
        owed: what earlier calls left owing.

    Returns:
        The numbers, and what is owed after them.
    """
    total = sum(weights.values())
    exact = {name: count * weight / total for name, weight in weights.items()}
    given = {name: floor(share) for name, share in exact.items()}
    due = {name: owed.get(name, Fraction(0)) + exact[name] - given[name] for name in weights}
    uneven = [name for name in weights if exact[name] != given[name]]
    uneven.sort(key=lambda name: -due[name])
    for name in uneven[: count - sum(given.values())]:
        given[name] += 1
        due[name] -= 1
    return given, due
