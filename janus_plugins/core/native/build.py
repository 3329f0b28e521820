"""Compile a source in C for this machine, once, and load it.

What was compiled is kept in the user's cache folder under a digest of all that it was made of. Where that
cannot be, because there is no compiler, say, there is no library, and callers go their other way.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HEADERS = Path(__file__).parent
"""Folder of the headers that sources elsewhere may include."""

_FLAGS = "-std=gnu11 -O3 -mavx2 -mfma -fno-trapping-math -ffp-contract=off -fopenmp -shared -fPIC"

_log = logging.getLogger(__name__)


@functools.cache
def library(source: Path) -> ctypes.CDLL | None:
    """Return a source as a loaded library, or None where this machine cannot have it.

    Args:
        source: a file in C, which may include what is in `HEADERS`.
    """
    if not can_run():
        return None
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    parts = [source.read_bytes(), *(each.read_bytes() for each in sorted(HEADERS.glob("*.h")))]
    made_of = [*parts, _FLAGS.encode(), platform.machine().encode()]
    name = f"{source.stem}-{hashlib.sha256(b'|'.join(made_of)).hexdigest()[:24]}.so"
    try:
        return _loaded(source, _folder() / name, compiler)
    except (OSError, subprocess.SubprocessError) as error:
        told = getattr(error, "stderr", None) or error
        _log.warning(
            "%s cannot be compiled and loaded, so this machine decodes slower: %s", source.name, told
        )
        return None


def can_run() -> bool:
    """Answer whether this machine runs such code: Linux, and a CPU with AVX2."""
    import torch

    return sys.platform == "linux" and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def _loaded(source: Path, target: Path, compiler: str | None) -> ctypes.CDLL | None:
    """Load what was compiled before, or else now; an unreadable file is made anew."""
    if target.exists():
        try:
            return ctypes.CDLL(str(target))
        except OSError:
            _log.info("%s cannot be loaded and is compiled again", target)
    if compiler is None:
        _log.info("there is no C compiler for %s, so this machine decodes slower", source.name)
        return None
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder, target.name)
        command = [*compiler.split(), *_FLAGS.split(), f"-I{HEADERS}", str(source), "-lm", "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        os.replace(made, target)
    try:
        return ctypes.CDLL(str(target))
    except OSError as error:
        raise OSError(
            f"{error}; where programs may not run from that folder, set XDG_CACHE_HOME to one where they may"
        ) from error


def _folder() -> Path:
    """Return a folder that nobody else can write to: in the user's cache, or else one of this process."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "janus-plugins", "native")
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = cache.stat()
        if about.st_uid == os.getuid() and not about.st_mode & 0o022 and os.access(cache, os.W_OK):
            return cache
    except (OSError, RuntimeError):
        pass
    return _own_folder()


@functools.cache
def _own_folder() -> Path:
    import atexit

    folder = Path(tempfile.mkdtemp(prefix="janus-plugins-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
