"""Tell the end of another rank from an error of our own, by the words of gloo, NCCL and torch's store."""

from __future__ import annotations

LOST = (
    "another rank has ended, and this one cannot go on without it: look at that rank's output above (if "
    "there is none it was killed, as where memory runs out), then start again; training goes on with --resume"
)

_TRANSPORTS = ("gloo", "nccl")
_ENDED = (
    "connection closed",
    "connection reset",
    "connection was likely closed",
    "broken pipe",
    "failed to recv, got 0 bytes",
    "remote process exit",
    "ncclremoteerror",
)


def is_lost_peer(error: BaseException) -> bool:
    """Answer whether torch's communication says that another process of the run is gone."""
    if not isinstance(error, RuntimeError):
        return False
    text = str(error).lower()
    kinds = {kind.__name__ for kind in type(error).__mro__}
    talked = "DistError" in kinds or any(word in text for word in _TRANSPORTS)
    return talked and any(word in text for word in _ENDED)
