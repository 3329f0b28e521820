"""What the classified-answers task offers, and its options."""

from __future__ import annotations

from pydantic import Field

from janus_plugins.core.facts import EvaluationFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import CONTRACT_VERSION, ComponentConfig, ComponentSpec


class ClassifiedAnswersConfig(ComponentConfig):
    """Answer prompts; a classifier must read in an answer's items what it reads in the sample's."""

    train_source: str = Field(description="data entry whose real items train the classifier")
    limit: int | None = Field(default=None, ge=1, description="score so many samples, spread evenly")
    guidance: float = Field(default=5.0, ge=0)
    temperature: float = Field(default=1.0, ge=0)
    seed: int = 0
    max_new_tokens: int = Field(default=32, ge=1)
    max_items: int = Field(default=8, ge=1)
    max_rows: int = Field(default=256, ge=2, description="rows computed at once")

    def facts(self) -> EvaluationFacts:
        """Answer that the classifier's data is read too, and how items are made."""
        sampling = {"guidance": self.guidance, "temperature": self.temperature}
        return EvaluationFacts(
            tasks=frozenset({"generation", "interleaved"}), sources=(self.train_source,), sampling=sampling
        )

    @classmethod
    def tiny(cls) -> dict[str, object]:
        """Return small options for `janus-plugins check`."""
        return {"train_source": "train", "limit": 4, "max_new_tokens": 4, "max_items": 1}


CLASSIFIED_ANSWERS = ComponentSpec(
    kind=Kind.EVALUATION_TASK,
    name="classified-answers",
    config=ClassifiedAnswersConfig,
    factory="janus_plugins.tasks.classified.answers:ClassifiedAnswers",
    contract=CONTRACT_VERSION,
    summary="share of answers of text and items that are right in every part",
    requires=("sklearn",),
    extra="janus-plugins[demo]",
)
