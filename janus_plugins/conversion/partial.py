"""A folder that is written beside its place and renamed when it is complete: no half of one is left."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from janus_plugins.core.outputs import partial_of


@contextmanager
def partial_folder(folder: Path) -> Iterator[Path]:
    """Give a new folder that takes the place of `folder` when the block ends, and is removed when it fails.

    What writers that were killed have left beside `folder` is removed first; parents that were made here and
    stay empty are removed at the end.

    Raises:
        OSError: nothing can be written there.
    """
    missing = [parent for parent in folder.parents if not parent.exists()]
    partial = partial_of(folder)
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in missing:
            with suppress(OSError):  # not empty, or never made
                parent.rmdir()
