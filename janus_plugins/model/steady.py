"""A native checkpoint that is replaced while it is read, as a run that trains replaces its `model/`.

Files are opened one by one, so that a reader would get some of the old folder's and some of the new one's,
each of them whole.
"""

from __future__ import annotations

import glob
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from janus_plugins.core.errors import CheckpointError, JanusPluginsError

T = TypeVar("T")

_TRIES = 5

_PATIENCE = 1.0
"""Seconds that a rename may take."""

_BETWEEN = 0.01


class ReplacedError(CheckpointError):
    """Say that a checkpoint was replaced while it was read."""


@contextmanager
def unreplaced(folder: Path) -> Iterator[Callable[[], None]]:
    """Refuse what was read inside the block where another checkpoint has taken the folder's place meanwhile.

    Yields a function that refuses it at once, before what was read is used.

    Raises:
        ReplacedError: it has; also in place of what went wrong for that.
    """
    before = _mark(folder)

    def check() -> None:
        if _mark(folder) != before:
            raise ReplacedError(
                f"{folder} was replaced by another checkpoint while it was read (by a run that trains?); try "
                "again"
            )

    try:
        yield check
    except (JanusPluginsError, OSError, ValueError, KeyError) as error:
        if not isinstance(error, ReplacedError):
            check()
        raise
    check()


def steadily(folder: Path, read: Callable[[], T]) -> T:
    """Return what `read` makes of a checkpoint, read anew where another one takes its place meanwhile.

    Raises:
        ReplacedError: that happens again and again.
    """
    for _ in range(_TRIES - 1):
        settle(folder)
        try:
            with unreplaced(folder):
                return read()
        except ReplacedError:
            continue
    with unreplaced(folder):
        return read()


def settle(folder: Path) -> None:
    """Wait while a checkpoint is away: one is put in the place of another by two renames.

    Raises:
        CheckpointError: whoever did that has died in between.
    """
    last = time.monotonic() + _PATIENCE
    while not folder.exists() and (away := _away(folder)):
        if time.monotonic() > last:
            raise CheckpointError(
                f"{folder} was being replaced when its writer died; the one before lies in {away}: go on "
                "with --resume, which puts it back, or rename it"
            )
        time.sleep(_BETWEEN)


def _away(folder: Path) -> Path | None:
    """Return where a checkpoint lies while another one takes its place."""
    return next(folder.parent.glob(f".{glob.escape(folder.name)}.old-*"), None)


def _mark(folder: Path) -> tuple[int, bytes] | None:
    """Return what another checkpoint in the same place has otherwise; None where there is none."""
    try:
        with (folder / "manifest.json").open("rb") as file:
            return (folder / "manifest.json").stat().st_mtime_ns, file.read()
    except OSError:
        return None
