"""What the tones source offers, and its options."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from janus_plugins.core.facts import SourceFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import CONTRACT_VERSION, ComponentConfig, ComponentSpec

NOTES = ("c", "c sharp", "d", "d sharp", "e", "f", "f sharp", "g", "g sharp", "a", "a sharp", "b")
OCTAVES = ("low", "middle", "high")
TIMBRES = {"mellow": 3, "bright": 1}
"""How fast the harmonics grow weaker: harmonic h has about 1 / h ** this."""

Count = Annotated[int, Field(ge=1)]


class TonesConfig(ComponentConfig):
    """Choose how many tones there are, how long, at which rate, and a side of the split."""

    split: Literal["train", "test"] = Field(default="train", description="side of the split: other draws")
    size: Count = Field(default=7_200, description="tones; each caption comes up equally often")
    seconds: Annotated[float, Field(gt=0, le=60)] = Field(default=0.4, description="length of a tone")
    rate: Annotated[int, Field(ge=1_000)] = Field(default=8_000, description="samples a second")
    lowest: Annotated[float, Field(gt=0)] = Field(
        default=130.8128, description="pitch of the low c in hertz; octaves follow one another"
    )
    harmonics: Count = Field(default=6, description="most harmonics of a tone")
    noise: Annotated[float, Field(ge=0)] = Field(default=0.005, description="deviation of the noise added")
    modality: str = Field(default="audio", description="modality of the model that makes them")
    prompt: str = Field(
        default="a {timbre} {octave} {note}", description="asked for; {timbre}, {octave} and {note}"
    )
    seed: int = Field(default=0, description="of phases, loudness, harmonics and noise")

    @model_validator(mode="after")
    def _can_be_heard(self) -> TonesConfig:
        highest = self.lowest * 2 ** (len(OCTAVES) - 1 / len(NOTES))
        if highest >= self.rate / 2:
            raise ValueError(
                f"the highest note has {highest:.0f} hertz, but rate {self.rate} carries less than "
                f"{self.rate / 2:.0f}; raise rate or lower lowest"
            )
        return self

    def facts(self) -> SourceFacts:
        """Answer that every sample asks for a sound."""
        return SourceFacts(tasks=frozenset({"generation"}), generation=frozenset({self.modality}))


TONES = ComponentSpec(
    kind=Kind.SOURCE,
    name="tones",
    config=TonesConfig,
    factory="janus_plugins.sources.tones.source:build",
    contract=CONTRACT_VERSION,
    summary="made tones by name: 36 notes, mellow or bright, of random phase, loudness and harmonics",
)
