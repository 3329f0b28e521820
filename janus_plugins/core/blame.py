"""Say whose fault it is: what a component raises becomes an error that names it, its plugin and the line."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from janus_plugins.core.errors import JanusPluginsError, PluginError
from janus_plugins.core.peers import is_lost_peer
from janus_plugins.core.plan import Part


def full_name(part: Part) -> str:
    """Return what a message calls a component: its place, kind and name, and whose it is."""
    return (
        f"{part.address}: {part.spec.kind}/{part.spec.name} of {part.owner.distribution} {part.owner.version}"
    )


def advice(part: Part) -> str:
    """Return what to do about a component that does not keep its contract."""
    return f"`janus-plugins check {part.owner.distribution}/{part.spec.name}` tests it alone"


@contextmanager
def blamed(part: Part, doing: str, *given: Any) -> Iterator[None]:
    """Turn what a component raises into a `PluginError`; errors that explain themselves pass.

    Args:
        part: whose code runs.
        doing: what it was asked to do: "facts()", "reading a batch of".
        given: tensors, and mappings of them, of which an error tells the shapes.

    Raises:
        PluginError: naming the component, its plugin, the line and the next step.
    """
    try:
        yield
    except (JanusPluginsError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError" or is_lost_peer(error):  # of a device; of another rank
            raise
        doing = " ".join([doing, *map(_spelt, given)])
        package = part.spec.factory.partition(":")[0].partition(".")[0]
        raise PluginError(
            f"{full_name(part)}: {doing} failed{line_of(error, package)}: {type(error).__name__}: {error}; "
            f"{advice(part)}"
        ) from error


def line_of(error: BaseException, package: str | None = None) -> str:
    """Return the innermost line that an error went through, of a package or of any: " at file.py:12"."""
    places = [
        f" at {frame.f_code.co_filename}:{line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if package in (None, str(frame.f_globals.get("__name__", "")).partition(".")[0])
    ]
    return places[-1] if places else ""


def _spelt(value: Any) -> str:
    """Return shapes and number formats of a tensor, or of a mapping of them."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_spelt(one)}" for name, one in value.items())
    if hasattr(value, "shape"):
        return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return value if isinstance(value, str) else f"a {type(value).__name__}"
