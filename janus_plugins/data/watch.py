"""What becomes of data workers: those that die or hang end in an error within seconds, never in a wait."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any, cast

from janus_plugins.core.errors import DataError, JanusPluginsError
from janus_plugins.data.worker import RankStep


def prepared_steps(loader: Any, workers: int, timeout: float) -> Iterator[RankStep]:
    """Yield what the workers make.

    Args:
        loader: a DataLoader over a `StepDataset`.
        workers: how many workers it has.
        timeout: longest wait for one step, in seconds.

    Raises:
        JanusPluginsError: what a worker reports.
        DataError: a worker died, or did not answer in time.
    """
    before = set(multiprocessing.active_children())
    steps = _started(loader)
    watch = _Watch([child for child in multiprocessing.active_children() if child not in before], timeout)
    while True:
        try:
            with watch:
                made = next(steps)
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

    def __init__(self, workers: Sequence[Any], timeout: float) -> None:
        self._workers, self._timeout = workers, timeout
        self._timer: threading.Timer | None = None
        self.expired = False

    def __enter__(self) -> None:
        if self._workers:
            self._timer = threading.Timer(self._timeout, self._expire)
            self._timer.daemon = True
            self._timer.start()

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _expire(self) -> None:
        self.expired = True
        for worker in self._workers:
            worker.kill()


def _started(loader: Any) -> Iterator[Any]:
    """Start the workers without torch's SIGCHLD handler.

    It raises in the main thread wherever that is when a worker dies, for instance in the middle of
    an optimiser step; `next` notices a dead worker by itself.
    """
    if threading.current_thread() is not threading.main_thread():
        return cast("Iterator[Any]", iter(loader))
    before = signal.getsignal(signal.SIGCHLD)
    steps: Iterator[Any] = iter(loader)
    signal.signal(signal.SIGCHLD, before)
    return steps
