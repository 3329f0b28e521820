"""Places that results are written to, tried before the work whose results go there."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from janus_plugins.core.errors import RunFileError


@contextmanager
def writing(place: Path, what: str = "folder") -> Iterator[None]:
    """Name the place where the file system refuses what is done inside the block.

    Raises:
        RunFileError: it cannot be written; another one is to be chosen with --out.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise RunFileError(
            f"{place} cannot be written: {reason}; choose another {what} with --out"
        ) from error


def make_folder(folder: Path) -> None:
    """Make a folder where there is none, and refuse one that takes no files.

    Raises:
        RunFileError: naming the folder and the cause.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
