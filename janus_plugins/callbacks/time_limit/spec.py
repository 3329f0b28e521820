"""What the time-limit callback offers, and its options."""

from __future__ import annotations

from pydantic import Field

from janus_plugins.core.facts import CallbackFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import CONTRACT_VERSION, ComponentConfig, ComponentSpec


class TimeLimitConfig(ComponentConfig):
    """Stop a launch in time, e.g. before a cluster's job limit; each launch has the whole time."""

    minutes: float = Field(default=60.0, gt=0, description="time from the start of training to the last step")

    def facts(self) -> CallbackFacts:
        """Answer that it speaks of no stage."""
        return CallbackFacts()


TIME_LIMIT = ComponentSpec(
    kind=Kind.CALLBACK,
    name="time-limit",
    config=TimeLimitConfig,
    factory="janus_plugins.callbacks.time_limit.callback:TimeLimit",
    contract=CONTRACT_VERSION,
    summary="saves and stops a launch after so many minutes, to be resumed",
)
