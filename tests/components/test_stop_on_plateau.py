"""The callback that ends a stage whose loss has stopped falling, and which loss that is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from janus_plugins.callbacks.stop_on_plateau.callback import StopOnPlateau
from janus_plugins.callbacks.stop_on_plateau.spec import StopOnPlateauConfig
from janus_plugins.core.errors import RunFileError


def ended(losses: Iterable[Mapping[str, float | None]], **options: Any) -> list[tuple[int, str]]:
    """Return at which steps a stage was asked to end, and why."""
    config = StopOnPlateauConfig(**{"window": 2, "patience": 2, **options})
    callback, told = StopOnPlateau(config, config.facts()), []
    steps: list[Mapping[str, float | None]] = []
    run: Any = SimpleNamespace(stage="one", end_stage=lambda why: told.append((len(steps), why)))
    callback.on_stage_start(run)
    for each in losses:
        steps.append(each)
        callback.on_step_end(run, {"loss": each})
    return told


def test_a_loss_that_falls_goes_on_and_one_that_does_not_ends() -> None:
    assert not ended({"text": 1 / step} for step in range(1, 20))
    told = ended({"text": max(0.5, 1 / step)} for step in range(1, 9))
    assert told[0] == (8, "the loss was no lower than 0.5 for 2 windows of 2 steps (now 0.5)")


def test_several_losses_count_by_their_mean_or_one_by_its_name() -> None:
    losses = [{"text": float(step), "generation.image": 40.0 - 3 * step} for step in range(1, 9)]
    assert not ended(losses)
    assert ended(losses, loss="text")[0][0] == 6
    with pytest.raises(RunFileError, match="Did you mean 'text'"):
        ended(losses, loss="txet")


def test_steps_that_were_not_finite_do_not_count() -> None:
    losses: list[dict[str, float | None]] = [{"text": 1.0}, {"text": None}, {"text": None}, {"text": None}]
    assert not ended(losses)
    assert ended([*losses, {"text": 1.0}, {"text": None}, {"text": 1.0}, {"text": None}])[0][0] == 8


def test_an_encoder_that_reconstructs_is_watched_by_what_it_minimises() -> None:
    """Its terms, and codes that it uses more and more of, stand beside that loss."""
    losses = [
        {"reconstruct.loss": 1 / step, "reconstruct.pixels": 1 / step, "reconstruct.codes_used": 10.0 * step}
        for step in range(1, 20)
    ]
    assert not ended(losses)
    assert ended(losses, loss="reconstruct.codes_used")
