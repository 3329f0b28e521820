"""What an installed distribution asks for and does not find: why a plugin may fail to load.

What reads requirements is imported where a plugin has failed: listing plugins that load waits for none of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

from janus_plugins import __version__

if TYPE_CHECKING:
    from packaging.requirements import Requirement


def unmet_requirements(distribution: str) -> str:
    """Say in one clause what a distribution asks for and is not there, and the next step; else nothing."""
    unmet: list[tuple[Requirement, str]] = []
    with suppress(Exception):  # metadata that is absent or damaged says nothing
        unmet = list(_unmet(distribution))
    if not unmet:
        return ""
    told = ", ".join(f"{one.name}{one.specifier} ({here})" for one, here in unmet)
    return f"{distribution} asks for {told}; next: install that, or another version of {distribution}"


def _unmet(distribution: str) -> Iterator[tuple[Requirement, str]]:
    from packaging.requirements import Requirement

    for line in requires(distribution) or ():
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        installed = installed_version(wanted.name)
        if installed is None:
            yield wanted, "not installed"
        elif not wanted.specifier.contains(installed, prereleases=True):
            yield wanted, f"{installed} is installed"


def installed_version(name: str) -> str | None:
    """Return the version of a distribution that is installed, or None."""
    if canonicalize_name(name) == "janus-plugins":  # a checkout on the path has no metadata
        return __version__
    try:
        return version(name)
    except PackageNotFoundError:
        return None
