"""Which of a call's answers are made by which process, and at once."""

from __future__ import annotations

from collections.abc import Iterator


def share_of(rank: int, size: int, number: int) -> range:
    """Return which of `number` answers a rank makes: neighbours, as many as the others' but for one."""
    return range(-(-rank * number // size), -(-(rank + 1) * number // size))


def parts_of(share: range, most: int) -> Iterator[range]:
    """Cut a share into runs of at most so many neighbours."""
    for first in range(share.start, share.stop, most):
        yield range(first, min(first + most, share.stop))
