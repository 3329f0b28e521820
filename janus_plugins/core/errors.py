"""What can go wrong in a user's hands, and the exit code each class ends the command line with.

Every message says what is wrong, where, and the next step; the command line prints it without a
traceback unless `--debug` is given.
"""

from __future__ import annotations


class JanusPluginsError(Exception):
    """Be the root of every error this package raises on purpose.

    Attributes:
        exit_code: what the command line ends with.
        of_one_rank: whether the other ranks of a run may know nothing of it; else all raise the same.
    """

    exit_code = 1
    of_one_rank = False


class RunFileError(JanusPluginsError):
    """Report a run file, an override or a command line that cannot be used."""

    exit_code = 2


class WiringError(RunFileError):
    """Report parts that do not fit one another (widths, codebooks, token counts)."""


class PluginError(JanusPluginsError):
    """Report a plugin, or a library one of its components needs, that is missing or broken."""

    exit_code = 3


class CheckpointError(JanusPluginsError):
    """Report a checkpoint that is missing, damaged, or does not belong to this run or model."""

    exit_code = 4


class NonFiniteError(JanusPluginsError):
    """Report a training run stopped because losses or gradients stayed non-finite."""

    exit_code = 5


class DataError(JanusPluginsError):
    """Report data that cannot be read: a source that does not open, or too many bad samples."""


class BadSample(DataError):
    """Report one sample that cannot be used; the reader quarantines it and goes on."""


class Interrupted(JanusPluginsError):
    """Report a run stopped by a signal after its state was saved.

    `exit_code` is 128 plus the signal's number (130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP).
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
