"""The conformance kit for plugin authors: `check_component(SPEC)` in a test of your own package."""

from __future__ import annotations

from janus_plugins.testing.check import check_component
from janus_plugins.testing.report import CheckReport, ContractBroken, RuleResult

__all__ = ["CheckReport", "ContractBroken", "RuleResult", "check_component"]
