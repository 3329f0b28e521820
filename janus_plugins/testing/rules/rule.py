"""What a rule is: a function of a case that returns, or raises `Broken` or `Skipped`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from janus_plugins.core.kinds import Kind
from janus_plugins.testing.case import Case
from janus_plugins.testing.report import PAGE

CONTRACTS = {
    Kind.LANGUAGE_MODEL: "LanguageModel",
    Kind.UNDERSTANDING_ENCODER: "UnderstandingEncoder",
    Kind.GENERATION_ENCODER: "GenerationEncoder",
    Kind.ADAPTER: "Adapter",
    Kind.HEAD: "Head",
    Kind.SOURCE: "Source",
    Kind.EVALUATION_TASK: "EvaluationTask",
    Kind.CALLBACK: "Callback",
}


@dataclass(frozen=True)
class Rule:
    """Name one thing that a contract asks for.

    Attributes:
        name: short name; its heading on the testing page.
        check: raises where the case breaks the rule.
        first: whether nothing else can be checked once it fails.
    """

    name: str
    check: Callable[[Case], None]
    first: bool = False

    @property
    def summary(self) -> str:
        """Return the rule in one line."""
        return (self.check.__doc__ or "").strip().partition("\n")[0].removeprefix("Check that ")

    def read(self, kind: Kind) -> str:
        """Say where to read about the rule."""
        return f"{PAGE}#{self.name}; janus_plugins.core.contracts.{CONTRACTS[kind]}"
