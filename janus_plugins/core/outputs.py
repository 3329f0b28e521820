"""Places that results are written to: tried before the work, and written beside until they are whole."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Give the place where a file is written before it takes the place of another, whole or not at all.

    Two writers of one file have a place each: else one would publish what the other has half written.
    """
    sweep_files(path.parent)
    partial = partial_file(path.parent, path.name, "")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def partial_of(folder: Path) -> Path:
    """Return where a folder is written before it takes its place; what dead writers left there is removed."""
    for path in left_by_the_dead(folder, "tmp"):
        shutil.rmtree(path, ignore_errors=True)
    partial = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    return partial


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


def partial_file(folder: Path, stem: str, suffix: str) -> Path:
    """Return a hidden place for a file until it has its name; `sweep_files` knows whose it is."""
    return folder / f".{stem}.{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.tmp{suffix}"


def sweep_files(folder: Path) -> None:
    """Remove what writers of this machine that died have left under names of `partial_file`."""
    for path in folder.glob(".*.tmp*"):
        found = _PARTIAL.search(path.name)
        if found and found["machine"] == _machine() and not _alive(int(found["process"])):
            path.unlink(missing_ok=True)


_PARTIAL = re.compile(r"\.(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-[0-9a-f]{8}\.tmp(\.\w+)?$", re.ASCII)


def _machine() -> str:
    """Return what tells machines apart that share a folder: a process's number means nothing elsewhere."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def left_by_the_dead(folder: Path, kind: str) -> list[Path]:
    """Return what writers of a folder that died have left beside it, `.NAME.KIND-PROCESS`."""
    prefix = f".{folder.name}.{kind}-"
    beside = list(folder.parent.glob(f"{glob.escape(prefix)}*")) if folder.parent.is_dir() else []
    owners = {path: path.name.removeprefix(prefix) for path in beside}
    return [path for path, owner in owners.items() if owner.isdecimal() and not _alive(int(owner))]


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # sends nothing
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
