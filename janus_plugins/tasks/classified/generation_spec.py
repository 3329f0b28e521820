"""What the classified-generation task offers, and its options."""

from __future__ import annotations

from pydantic import Field

from janus_plugins.core.facts import EvaluationFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import CONTRACT_VERSION, ComponentConfig, ComponentSpec


class ClassifiedGenerationConfig(ComponentConfig):
    """Generate items in which a classifier of real ones must see what their prompts asked for."""

    train_source: str = Field(description="data entry whose real items train the classifier")
    num_per_prompt: int = Field(default=20, ge=1)
    guidance: float = Field(default=5.0, ge=0)
    temperature: float = Field(default=1.0, ge=0)
    seed: int = 0
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
        return {"train_source": "train", "num_per_prompt": 1}


CLASSIFIED_GENERATION = ComponentSpec(
    kind=Kind.EVALUATION_TASK,
    name="classified-generation",
    config=ClassifiedGenerationConfig,
    factory="janus_plugins.tasks.classified.generation:ClassifiedGeneration",
    contract=CONTRACT_VERSION,
    summary="share of generated items that a classifier of real ones takes for what was asked",
    requires=("sklearn",),
    extra="janus-plugins[demo]",
)
