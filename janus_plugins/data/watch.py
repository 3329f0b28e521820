"""What becomes of data workers: those that die or hang end in an error within seconds, never in a wait."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

from janus_plugins.core.errors import DataError, JanusPluginsError
from janus_plugins.data.worker import RankStep

_BETWEEN = 2.0
"""Seconds between looks at workers while one is waited for."""

_HELD = 1.0
"""Seconds for which nobody alive holds the workers' lock."""


def prepared_steps(loader: Any, workers: int, timeout: float) -> Iterator[RankStep]:
    """Yield what the workers make.

    Args:
        loader: a DataLoader over a `StepDataset`.
        workers: how many workers it has.
        timeout: longest wait for one step, in seconds.

    Raises:
        JanusPluginsError: what a worker reports.
        DataError: a worker died, did not answer in time, or could not be started.
    """
    from janus_plugins.data.parcel import unpack

    before = set(multiprocessing.active_children())
    try:
        steps = _started(loader)
    except (OSError, ImportError) as error:  # ImportError: there are no semaphores at all
        raise DataError(
            f"data workers cannot be started: {error}. They need a process each and room in /dev/shm (in a "
            "container: --shm-size or --ipc=host); mend that, or set engine.workers: 0"
        ) from error
    workers_of = [child for child in multiprocessing.active_children() if child not in before]
    watch = _Watch(workers_of, timeout, steps)
    while True:
        try:
            with watch:
                made = next(steps)
                if workers:
                    made = unpack(made)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:
            if not workers:
                raise
            late = f"no data came within engine.data_timeout ({timeout:g} s)" if watch.expired else str(error)
            raise DataError(
                f"a data worker failed: {late}. Look for a file that hangs, for memory running out, "
                "or try engine.workers: 0"
            ) from error
        if isinstance(made, JanusPluginsError):
            raise made
        yield made


class _Watch:
    """End workers that do not answer in time; torch then reports them as dead.

    The DataLoader's own timeout would also be how long a worker that was killed goes unnoticed:
    without one, torch looks after its workers every few seconds.
    """

    def __init__(self, workers: Sequence[Any], timeout: float, steps: Any) -> None:
        self._workers, self._timeout, self._steps = workers, timeout, steps
        self._over = threading.Event()
        self.expired = False

    def __enter__(self) -> None:
        if self._workers:
            self._over = threading.Event()
            threading.Thread(target=self._look, args=(self._over,), daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _look(self, over: threading.Event) -> None:
        last = time.monotonic() + self._timeout
        while not over.wait(min(_BETWEEN, max(0.0, last - time.monotonic()))):
            if time.monotonic() >= last:
                self.expired = True
            if self.expired or any(worker.exitcode for worker in self._workers):
                self._end()
            if self.expired or not all(worker.is_alive() for worker in self._workers):
                self._free()
            if self.expired:
                return

    def _end(self) -> None:
        """Let a read of the pipe end: a worker killed in the middle of a message never finishes it."""
        for worker in self._workers:
            worker.kill()
        writer = getattr(getattr(self._steps, "_worker_result_queue", None), "_writer", None)
        if writer is not None:
            writer.close()

    def _free(self) -> None:
        """Let go of the lock that all of them share: one that was killed may have died holding it."""
        done = getattr(self._steps, "_workers_done_event", None)
        lock = getattr(getattr(done, "_cond", None), "_lock", None)
        if lock is not None:
            lock.acquire(timeout=_HELD)
            lock.release()


def _started(loader: Any) -> Iterator[Any]:
    """Start the workers without torch's SIGCHLD handler.

    It raises in the main thread wherever that is when a worker dies, for instance in the middle of
    an optimiser step; `next` notices a dead worker by itself.
    """
    if threading.current_thread() is not threading.main_thread():
        return cast("Iterator[Any]", iter(loader))
    before = signal.getsignal(signal.SIGCHLD)
    try:
        return cast("Iterator[Any]", iter(loader))
    finally:
        signal.signal(signal.SIGCHLD, before)
