"""Publish a folder at once or not at all, and know a damaged one when it is read.

A folder is written as `NAME.tmp`, every file is synced and its sha256 recorded in `manifest.json`, and only
then is it renamed to `NAME`. What dies in between leaves a `.tmp` that nobody reads. DeepSpeed's own files
have no checksum, and a flipped byte in one loads silently.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from janus_plugins.core.errors import CheckpointError, JanusPluginsError
from janus_plugins.core.peers import is_lost_peer
from janus_plugins.training.world import World

MANIFEST = "manifest.json"
FORMAT = 1
PARTIAL = ".tmp"


def publish(
    world: World, root: Path, name: str, write: Callable[[Path], None], facts: Mapping[str, Any]
) -> None:
    """Let every rank write into a folder and publish it as `root / name`.

    Args:
        world: who we are; every rank calls this.
        root: the folder of checkpoints.
        name: the checkpoint's name.
        write: writes this rank's files into the folder it is given.
        facts: plain data to record beside the checksums.

    Raises:
        CheckpointError: the disk is full or read-only; what was published before is untouched.
    """
    partial = root / (name + PARTIAL)
    world.from_main(lambda: _prepare(root, partial))
    try:
        write(partial)
        world.barrier()
        files = [path for path in sorted(partial.rglob("*")) if path.is_file()]
        mine = {str(path.relative_to(partial)): seal(path) for path in files[world.rank :: world.size]}
        sealed = {path: entry for part in world.gather(mine) for path, entry in part.items()}
        world.from_main(lambda: _finish(partial, root / name, {**facts, "format": FORMAT, "files": sealed}))
    except JanusPluginsError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        shutil.rmtree(partial, ignore_errors=True)
        if is_lost_peer(error):
            raise
        with world.apart():
            raise _unwritable(root, name, error) from error


def _unwritable(root: Path, name: str, error: Exception) -> CheckpointError:
    try:
        free = f"{shutil.disk_usage(root).free / 1e9:.2f} GB free there"
    except OSError:
        free = "free space unknown"
    return CheckpointError(
        f"{root / name} could not be written ({free}): {error}; earlier checkpoints are intact: make room "
        "and go on with --resume"
    )


def _prepare(root: Path, partial: Path) -> None:
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as error:
        raise _unwritable(root, partial.name, error) from error


def _finish(partial: Path, target: Path, manifest: Mapping[str, Any]) -> None:
    try:
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        sync(partial / MANIFEST)
        for folder in {partial, *(path for path in partial.rglob("*") if path.is_dir())}:
            sync(folder)
        remove(target)
        partial.rename(target)
        latest = target.parent / "latest.tmp"
        latest.write_text(target.name, encoding="utf-8")
        sync(latest)
        os.replace(latest, target.parent / "latest")
        sync(target.parent)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise _unwritable(target.parent, target.name, error) from error


def seal(path: Path) -> dict[str, Any]:
    """Bring a file to the disk and return its size in bytes and its sha256."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        os.fsync(stream.fileno())
    return {"bytes": path.stat().st_size, "sha256": digest}


def sync(path: Path) -> None:
    """Bring a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(folder: Path) -> None:
    """Remove a published folder so that a half-removed one is never taken for a checkpoint."""
    if folder.exists():
        doomed = folder.with_name(folder.name + ".old" + PARTIAL)
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def sweep(root: Path) -> None:
    """Remove what writers that died have left."""
    for path in root.glob(f"*{PARTIAL}"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return a published folder's manifest.

    Raises:
        CheckpointError: there is none, or it is damaged or of another format.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version, files = manifest["format"], manifest["files"]
        sizes = [int(entry["bytes"]) + len(entry["sha256"]) for entry in files.values()]
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no {MANIFEST}") from None
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise CheckpointError(f"{folder / MANIFEST} is damaged: {error}") from error
    if version != FORMAT or not sizes:
        raise CheckpointError(f"{folder} has checkpoint format {version}; this version reads {FORMAT}")
    return manifest  # type: ignore[no-any-return]


def verify(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Check that a folder holds exactly the manifest's files, each with its size and sha256.

    Raises:
        CheckpointError: naming the first file that is missing, damaged, foreign, or a link.
    """
    files: dict[str, dict[str, Any]] = manifest["files"]
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    foreign = sorted(present - set(files) - {MANIFEST})
    if foreign:
        raise CheckpointError(f"{folder / foreign[0]} is not in the manifest")
    for name, entry in files.items():
        verify_file(folder / name, entry)


def verify_file(path: Path, entry: Mapping[str, Any] | None) -> None:
    """Check one file against its entry in the manifest, None where it has none.

    Raises:
        CheckpointError: it is missing, damaged, foreign, or a link.
    """
    if entry is None:
        raise CheckpointError(f"{path} is not in the manifest")
    if path.is_symlink() or not path.is_file():
        raise CheckpointError(f"{path} is missing or a link")
    if path.stat().st_size != entry["bytes"]:
        raise CheckpointError(f"{path} has {path.stat().st_size} bytes; {entry['bytes']} were written")
    with path.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != entry["sha256"]:
            raise CheckpointError(f"{path} is damaged: its sha256 is not the recorded one")
