"""What the exact-match task offers, and its options."""

from __future__ import annotations

from pydantic import Field

from janus_plugins.core.facts import EvaluationFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import CONTRACT_VERSION, ComponentConfig, ComponentSpec


class ExactMatchConfig(ComponentConfig):
    """Ask for answers that must be the samples', but for case and outer spaces."""

    max_new_tokens: int = Field(default=16, ge=1)
    limit: int | None = Field(default=None, ge=1, description="score the first so many samples only")
    batch: int = Field(default=64, ge=1, description="questions asked at once, on each rank")

    def facts(self) -> EvaluationFacts:
        """Answer that whatever ends in a text can be scored."""
        return EvaluationFacts(tasks=frozenset({"text", "understanding", "interleaved"}))


EXACT_MATCH = ComponentSpec(
    kind=Kind.EVALUATION_TASK,
    name="exact-match",
    config=ExactMatchConfig,
    factory="janus_plugins.tasks.exact_match.task:ExactMatch",
    contract=CONTRACT_VERSION,
    summary="share of questions that are answered exactly",
)
