"""A plugin for tests: its hook raises."""

from janus_plugins import hookimpl


@hookimpl
def janus_components():
    raise LookupError("the hook of this plugin raises")
