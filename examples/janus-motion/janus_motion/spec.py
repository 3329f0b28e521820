from typing import Literal

import janus_plugins as jp

STRIDE = 10  # readings [time, 3] that make one token


class MotionConfig(jp.ComponentConfig):
    width: int = 48
    max_tokens: int = 12

    def facts(self):
        return jp.UnderstandingFacts("motion", self.width, tokens=None, max_tokens=self.max_tokens)


class MotionsConfig(jp.ComponentConfig):
    split: Literal["train", "test"] = "train"
    size: int = 600

    def facts(self):
        return jp.SourceFacts(tasks=frozenset({"understanding"}), understanding=frozenset({"motion"}))


ENCODER = jp.ComponentSpec(
    kind=jp.Kind.UNDERSTANDING_ENCODER, name="motion", config=MotionConfig, contract=1,
    factory="janus_motion.model:Encoder", processor="janus_motion.processor:Processor",
    summary="accelerometer recordings of any length -> features",
)  # fmt: skip
SOURCE = jp.ComponentSpec(
    kind=jp.Kind.SOURCE, name="motions", config=MotionsConfig, contract=1,
    factory="janus_motion.source:Motions", summary="made recordings of four activities",
)  # fmt: skip


@jp.hookimpl
def janus_components():
    return [ENCODER, SOURCE]
