"""The hooks of the plugin host. Plugins mark their functions with `hookimpl`."""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from janus_plugins.core.specs import ComponentSpec

PROJECT = "janus_plugins"
"""The pluggy project, and the entry-point group that plugins declare."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def janus_components() -> Iterable[ComponentSpec]:
    """Return the components that this plugin offers. Must be quick and must not import torch."""
    raise NotImplementedError
