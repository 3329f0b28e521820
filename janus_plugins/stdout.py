"""Standard output for a command's answer alone: whatever plugins and libraries print goes to standard error.

The descriptor itself is turned aside, so that it holds for code in C and for processes that are started, too.
Knows nothing of what is answered.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress

import typer

Say = Callable[..., None]
"""Prints as `typer.echo` does, where standard output went before."""

_OUT, _ERR = 1, 2


@contextmanager
def set_aside() -> Iterator[Say]:
    """Turn standard output aside while a command works, and give what prints its answer meanwhile."""
    turned = ExitStack()

    def say(text: str = "", nl: bool = True) -> None:
        turned.close()
        try:
            typer.echo(text, nl=nl)
        finally:
            turned.enter_context(_turned())

    with turned:
        turned.enter_context(_turned())
        yield say


@contextmanager
def _turned() -> Iterator[None]:
    if sys.stdout is None:  # it is closed: its number may be another file's
        yield
        return
    sys.stdout.flush()
    kept = os.dup(_OUT)
    try:
        with _instead() as other, redirect_stdout(sys.stderr):
            os.dup2(other, _OUT)
            yield
    finally:
        _flush_c()
        os.dup2(kept, _OUT)
        os.close(kept)


@contextmanager
def _instead() -> Iterator[int]:
    """Give the descriptor of standard error, or of nowhere where that is closed."""
    if sys.stderr is not None:
        yield _ERR
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        yield nowhere
    finally:
        os.close(nowhere)


def _flush_c() -> None:
    """Write out what C has buffered: it would come after the answer, at the end of the program."""
    import ctypes

    with suppress(OSError, AttributeError, TypeError):  # Windows has its C library elsewhere
        ctypes.CDLL(None).fflush(None)
