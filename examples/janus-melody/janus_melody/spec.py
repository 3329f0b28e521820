from typing import Literal

import janus_plugins as jp

LOWEST, PITCHES = 36, 60  # code 0 is a rest, code 1 is MIDI pitch 36


class MelodyConfig(jp.ComponentConfig):
    notes: int = 16

    def facts(self):
        grid = {"tokens": self.notes, "grid": (self.notes,)}
        return jp.GenerationFacts("melody", "codes", width=16, codebook_size=PITCHES + 1, **grid)


class ScalesConfig(jp.ComponentConfig):
    split: Literal["train", "test"] = "train"

    def facts(self):
        return jp.SourceFacts(tasks=frozenset({"generation"}), generation=frozenset({"melody"}))


CODEC = jp.ComponentSpec(
    kind=jp.Kind.GENERATION_ENCODER, name="melody", config=MelodyConfig, contract=1,
    factory="janus_melody.model:Codec", processor="janus_melody.processor:Processor",
    summary="lists of MIDI pitches <-> codes, written as .mid",
)  # fmt: skip
SOURCE = jp.ComponentSpec(
    kind=jp.Kind.SOURCE, name="scales", config=ScalesConfig, contract=1,
    factory="janus_melody.source:Scales", summary="scales from every key, up and down, by name",
)  # fmt: skip


@jp.hookimpl
def janus_components():
    return [CODEC, SOURCE]
