"""What the pitch task offers, and its options."""

from __future__ import annotations

from pydantic import Field

from janus_plugins.core.facts import EvaluationFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import CONTRACT_VERSION, ComponentConfig, ComponentSpec


class PitchConfig(ComponentConfig):
    """Generate sounds whose pitch must be that of the real sounds of the same caption."""

    within: float = Field(default=0.03, gt=0, lt=1, description="share by which a pitch may be off")
    num_per_prompt: int = Field(default=4, ge=1)
    guidance: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=1.0, ge=0)
    seed: int = 0
    max_rows: int = Field(default=256, ge=2, description="rows computed at once")

    def facts(self) -> EvaluationFacts:
        """Answer how sounds are made."""
        sampling = {"guidance": self.guidance, "temperature": self.temperature}
        return EvaluationFacts(tasks=frozenset({"generation"}), sampling=sampling)

    @classmethod
    def tiny(cls) -> dict[str, object]:
        """Return small options for `janus-plugins check`."""
        return {"num_per_prompt": 1}


PITCH = ComponentSpec(
    kind=Kind.EVALUATION_TASK,
    name="pitch",
    config=PitchConfig,
    factory="janus_plugins.tasks.pitch.task:Pitch",
    contract=CONTRACT_VERSION,
    summary="share of generated sounds that have the pitch of the real ones of their caption",
)
