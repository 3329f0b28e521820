"""What the stop-on-plateau callback offers, and its options."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from janus_plugins.core.facts import CallbackFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import CONTRACT_VERSION, ComponentConfig, ComponentSpec


class StopOnPlateauConfig(ComponentConfig):
    """End a stage whose training loss has stopped falling."""

    window: Annotated[int, Field(ge=1)] = Field(
        default=100, description="steps whose mean loss is compared with the best one before"
    )
    patience: Annotated[int, Field(ge=1)] = Field(
        default=3, description="windows in a row without improvement that end the stage"
    )
    improvement: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.002, description="share of the best loss by which a window must be lower to count"
    )
    loss: str | None = Field(
        default=None,
        description="label of the loss, as in metrics.jsonl, e.g. text.understanding (default: their mean; "
        "where an encoder reconstructs, reconstruct.loss)",
    )
    stages: tuple[str, ...] | None = Field(default=None, description="stages to watch (default: all)")
    then: Literal["end-stage", "stop-run"] = Field(
        default="end-stage", description="go on with the next stage, or save and stop the run"
    )

    def facts(self) -> CallbackFacts:
        """Answer the stages that it watches."""
        return CallbackFacts(stages=self.stages or ())

    @classmethod
    def tiny(cls) -> dict[str, object]:
        """Return options for `janus-plugins check`, whose rehearsal has few steps."""
        return {"window": 2, "patience": 2}


STOP_ON_PLATEAU = ComponentSpec(
    kind=Kind.CALLBACK,
    name="stop-on-plateau",
    config=StopOnPlateauConfig,
    factory="janus_plugins.callbacks.stop_on_plateau.callback:StopOnPlateau",
    contract=CONTRACT_VERSION,
    summary="ends a stage, or the run, when its loss has stopped falling",
)
