"""Say whose fault it is: what a component raises becomes an error that names it, its plugin and the line."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from janus_plugins.core.errors import JanusPluginsError, PluginError
from janus_plugins.core.owner import Owner
from janus_plugins.core.specs import ComponentSpec


class Blamed(Protocol):
    """Be a component at its place in a run: a `core.plan.Part`, or `Suspect` before there is one."""

    @property
    def address(self) -> str:
        """Return its place in the run."""
        ...

    @property
    def spec(self) -> ComponentSpec:
        """Return the component's declaration."""
        ...

    @property
    def owner(self) -> Owner:
        """Return who offers it."""
        ...


def full_name(part: Blamed) -> str:
    """Return what a message calls a component: its place, kind and name, and whose it is."""
    return (
        f"{part.address}: {part.spec.kind}/{part.spec.name} of {part.owner.distribution} {part.owner.version}"
    )


def advice(part: Blamed) -> str:
    """Return what to do about a component that does not keep its contract."""
    return f"`janus-plugins check {part.owner.distribution}/{part.spec.name}` tests it alone"


@dataclass(frozen=True)
class Suspect:
    """Hold a component whose options are not yet known to work; see `Blamed`."""

    address: str
    spec: ComponentSpec
    owner: Owner


@contextmanager
def blamed(part: Blamed | None, doing: str) -> Iterator[None]:
    """Turn what a component raises into a `PluginError`; errors that explain themselves pass.

    Args:
        part: whose code runs; None lets everything pass.
        doing: what it was asked to do: "facts()", "reading a batch".

    Raises:
        PluginError: naming the component, its plugin, the line and the next step.
    """
    try:
        yield
    except (JanusPluginsError, MemoryError):
        raise
    except Exception as error:
        if part is None or type(error).__name__ == "OutOfMemoryError":  # torch's, of a device
            raise
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
