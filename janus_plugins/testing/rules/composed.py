"""Rules about a component inside a tiny model that is composed, fed and trained as any other."""

from __future__ import annotations

import math
from typing import Any

from janus_plugins.core.errors import JanusPluginsError
from janus_plugins.core.kinds import Kind
from janus_plugins.core.schema import StageBlock
from janus_plugins.data.loader import StepLoader
from janus_plugins.testing.case import Case
from janus_plugins.testing.report import Broken, Skipped, expect
from janus_plugins.testing.tiny_model import TinyModel

FALL = 0.9
"""Share of the first loss that the last one must stay below."""


def wiring(case: Case) -> None:
    """Check that the facts fit a model's: it can be wired and composed with other parts."""
    wanted = "facts that fit the encoder, the language model and the path that they stand beside"
    try:
        TinyModel(case).model  # noqa: B018  (composes)
    except JanusPluginsError as error:
        raise Broken(wanted, " ".join(str(error).split())) from error


def absent(case: Case) -> None:
    """Check that a batch without the modality runs it, with a gradient of exactly zero."""
    if case.kind in (Kind.LANGUAGE_MODEL, Kind.SOURCE):
        raise Skipped("it has a part in every batch")
    tiny = TinyModel(case)
    tiny.model.train()
    tiny.backward(tiny.present())
    reached = {name for name, each in tiny.component.named_parameters() if each.grad is not None}
    tiny.model.zero_grad()
    loss = tiny.backward(tiny.absent())
    expect(math.isfinite(loss), "a finite loss of a batch without it", loss)
    for name, parameter in tiny.component.named_parameters():
        gradient = parameter.grad
        wanted = "the same parameters reached by a batch without the modality (ranks stay in step)"
        expect(gradient is not None or name not in reached, wanted, f"{name} is not")
        wanted = "a gradient of exactly zero from a batch without the modality"
        expect(gradient is None or not gradient.any(), wanted, f"NaN or another value in {name}")


def trains(case: Case) -> None:
    """Check that inside a tiny model, the loss falls within a few optimiser steps."""
    tiny = TinyModel(case)
    _falls(tiny.train(tiny.present()), "the model's loss")
    own = case.kind == Kind.GENERATION_ENCODER and hasattr(tiny.component, "reconstruction_loss")
    if own:
        tiny = TinyModel(case)
        modality = case.facts.modality
        _falls(tiny.train(tiny.present(), reconstruct=modality), "reconstruction_loss")


def trains_on(case: Case) -> None:
    """Check that the ordinary loader reads its samples, and a tiny model learns from them."""
    task = min(case.facts.tasks)
    tiny = TinyModel(case)
    stage = StageBlock(
        name="check", learn={"language_model": 1.0}, mix={task: 1}, steps=2, batch=4, max_length=256
    )
    made = list(StepLoader(tiny.plan, tiny.tokenizer, stage))
    bad = [f"{record.key}: {record.reason}" for step in made for record in step.bad]
    expect(not bad, "samples that can be read and laid out in 256 slots", "; ".join(bad[:3]))
    _falls(tiny.train(made[0].micro[0]), "the loss of its samples")


def _falls(losses: list[float], what: str) -> None:
    finite = all(map(math.isfinite, losses))
    shown = " ".join(f"{loss:.3g}" for loss in losses)
    expect(finite, f"{what} to be finite", shown)
    wanted = f"{what} to fall below {FALL:.0%} of its start within {len(losses)} steps"
    expect(losses[-1] < FALL * losses[0], wanted, shown)


def ranks(case: Case) -> None:
    """Check that two ranks under ZeRO-3, only one of which has the modality, train without hanging."""
    if not case.ranks:
        raise Skipped("slow; asked for with ranks=True")
    from janus_plugins.testing.ranks import train_two_ranks

    outcome: Any = train_two_ranks(case)
    expect(outcome == "", "two ranks under ZeRO-3 to take two steps", outcome)
