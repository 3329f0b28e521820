"""The conformance kit for plugin authors: `check_component(SPEC)` in a test of your own package.

Names resolve on first use; importing this loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from janus_plugins.testing.check import check_component
    from janus_plugins.testing.report import CheckReport, ContractBroken, RuleResult

__all__ = ["CheckReport", "ContractBroken", "RuleResult", "check_component"]


def __getattr__(name: str) -> Any:
    """Load a public name on first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = "check" if name == "check_component" else "report"
    return getattr(import_module(f"{__name__}.{room}"), name)
