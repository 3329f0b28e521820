"""Who offers a component. Alone in a module, so that listing plugins loads no run file's schema."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Owner:
    """Say which installed distribution offers a component."""

    distribution: str
    version: str
