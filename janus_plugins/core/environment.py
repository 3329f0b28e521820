"""Read switches from the environment."""

from __future__ import annotations

import os


def switched_on(variable: str) -> bool:
    """Answer whether a variable is set to anything but nothing and 0."""
    return os.environ.get(variable, "") not in ("", "0")
