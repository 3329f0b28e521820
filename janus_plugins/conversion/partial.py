"""A folder that is written beside its place and renamed when it is complete: no half of one is left."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def partial_folder(folder: Path) -> Iterator[Path]:
    """Give a new folder that takes the place of `folder` when the block ends, and is removed when it fails.

    What writers that were killed have left beside `folder` is removed first; parents that were made here and
    stay empty are removed at the end.

    Raises:
        OSError: nothing can be written there.
    """
    missing = [parent for parent in folder.parents if not parent.exists()]
    partial = folder.with_name(f"{_prefix(folder)}{os.getpid()}")
    if folder.parent.is_dir():
        _sweep(folder)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in missing:
            with suppress(OSError):  # not empty, or never made
                parent.rmdir()


def _prefix(folder: Path) -> str:
    return f".{folder.name}.tmp-"


def _sweep(folder: Path) -> None:
    """Remove the partial folders of processes that are no more."""
    for path in folder.parent.iterdir():
        owner = path.name.removeprefix(_prefix(folder))
        if owner != path.name and owner.isdecimal() and not _alive(int(owner)):
            shutil.rmtree(path, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # sends nothing
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
