from typing import Annotated, Literal

from pydantic import Field, model_validator

import janus_plugins as jp

CHANNELS = ("FP1", "FP2", "F3", "F4", "T7", "T8", "C3", "C4", "P3", "P4", "O1", "O2")


class BrainwavesConfig(jp.ComponentConfig):
    split: Literal["train", "test"] = "train"
    size: Annotated[int, Field(ge=1)] = 20_000
    rate: Annotated[int, Field(ge=128)] = Field(default=256, description="samples a second")
    seconds: tuple[Annotated[int, Field(ge=1)], int] = Field(
        default=(2, 4), description="shortest and longest recording"
    )
    hum: Annotated[float, Field(gt=0)] = Field(default=50.0, description="frequency of the mains, in Hz")

    @model_validator(mode="after")
    def _shortest_first(self):
        if self.seconds[0] > self.seconds[1]:
            raise ValueError(f"seconds {self.seconds} must be the shortest and the longest recording")
        return self

    def facts(self):
        return jp.SourceFacts(tasks=frozenset({"understanding"}), understanding=frozenset({"eeg"}))


BRAINWAVES = jp.ComponentSpec(
    kind=jp.Kind.SOURCE, name="brainwaves", config=BrainwavesConfig, contract=1,
    factory="janus_eeg.source:Brainwaves", summary="made brain signals: rhythms, blinks, muscles, mains",
)  # fmt: skip


@jp.hookimpl
def janus_components():
    return [BRAINWAVES]
