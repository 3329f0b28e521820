"""Two guards around a run: one process group for one output folder, and stopping when told to.

The lock is a POSIX record lock: the kernel drops it when its process dies, however it dies, and data workers
do not inherit it; so there are no stale locks to judge.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from janus_plugins.core.errors import CheckpointError, RunFileError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextmanager
def locked(out: Path) -> Iterator[Callable[[], None]]:
    """Hold an output folder for this run alone.

    Yields a function that raises a CheckpointError where this folder was removed and another run has taken
    one of the same name: a lock does not outlive its file's name.

    Raises:
        RunFileError: another run holds it.
        CheckpointError: the folder cannot be written.
    """
    with _refusing(out):
        out.mkdir(parents=True, exist_ok=True)
        stream = (out / ".lock").open("ab+", buffering=0)
    with stream:
        _take(stream.fileno(), out)
        with _refusing(out):
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield lambda: _check(stream.fileno(), out)


@contextmanager
def _refusing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{out} cannot be written: {error}; choose another folder with --out"
        ) from error


def _check(descriptor: int, out: Path) -> None:
    try:
        same = os.path.samestat(os.fstat(descriptor), (out / ".lock").stat())
    except OSError:  # removed, and nobody's
        return
    if not same:
        raise CheckpointError(
            f"{out} was removed and is another run's now; this one stops, and leaves that one's files alone"
        )


def _take(descriptor: int, out: Path) -> None:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise CheckpointError(
                f"{out / '.lock'} cannot be locked: {error}; use a file system with locks"
            ) from error
        os.lseek(descriptor, 0, os.SEEK_SET)
        holder = os.read(descriptor, 200).decode("utf-8", "replace") or "another process"
        raise RunFileError(
            f"{out} is in use by {holder}; wait for it, stop it, or choose another folder with --out"
        ) from None


PATIENCE = 1.0
"""Seconds after a signal in which another one is an echo of it."""


class StopSignals:
    """Notice `STOP_SIGNALS`, so that the loop can finish its step; the same one again ends at once.

    SIGHUP comes where a terminal is closed or the connection to it drops; where `nohup` has it ignored, it
    stays so.

    A launcher hands on what its terminal has sent to every process already, and DeepSpeed's turns SIGINT into
    SIGTERM: what comes within `PATIENCE`, or is another signal than the first, asks for nothing new.

    Attributes:
        received: number of the signal, or 0.
    """

    def __init__(self) -> None:
        self.received = 0
        self._since = 0.0

    def _notice(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.received:
            self.received, self._since = number, now
        elif number == self.received and now - self._since > PATIENCE:
            os._exit(128 + number)

    @contextmanager
    def watching(self) -> Iterator[StopSignals]:
        """Handle the signals inside the block; put the former handlers back afterwards.

        Python lets the main thread alone handle any: in another one they stay with whoever owns the process.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        kept = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        noticed = [number for number in STOP_SIGNALS if not (kept and number == signal.SIGHUP)]
        former = {number: signal.signal(number, self._notice) for number in noticed}
        try:
            yield self
        finally:
            for number, handler in former.items():
                if handler is not None:  # else it was not set by Python, which cannot put it back
                    signal.signal(number, handler)
