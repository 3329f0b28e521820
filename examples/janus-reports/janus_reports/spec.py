from typing import Annotated

from pydantic import Field

import janus_plugins as jp

Count = Annotated[int, Field(ge=1)]


class ConfusionConfig(jp.ComponentConfig):
    limit: Count | None = None
    batch: Count = 64
    max_new_tokens: Count = 16

    def facts(self):
        return jp.EvaluationFacts(tasks=frozenset({"text", "understanding"}))


class LossFileConfig(jp.ComponentConfig):
    file: str = "losses.csv"

    def facts(self):
        return jp.CallbackFacts()


CONFUSION = jp.ComponentSpec(
    kind=jp.Kind.EVALUATION_TASK, name="confusion", config=ConfusionConfig, contract=1,
    factory="janus_reports.confusion:Confusion",
    summary="balanced accuracy of short answers, and what was said for what",
)  # fmt: skip
LOSS_FILE = jp.ComponentSpec(
    kind=jp.Kind.CALLBACK, name="loss-file", config=LossFileConfig, contract=1,
    factory="janus_reports.loss_file:LossFile", summary="writes every step's losses to a CSV file",
)  # fmt: skip


@jp.hookimpl
def janus_components():
    return [CONFUSION, LOSS_FILE]
