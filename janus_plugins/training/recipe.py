"""What a run consists of, for the loop: stages, and how to make a model and a loader for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from janus_plugins.core.plan import Part
from janus_plugins.core.schema import EngineBlock, StageBlock
from janus_plugins.training.metrics import Sampler
from janus_plugins.training.world import World


@dataclass(frozen=True)
class Recipe:
    """Hold what the loop needs to know of a run.

    Attributes:
        stages: the rows of the recipe.
        engine: how training runs.
        seed: the run's seed.
        build: makes the model on the CPU, the same one each time, with the weights that a run starts from;
            given False it may leave parameters empty (on the meta device), as others are put in their place.
        loader: makes the batches of a stage for a rank, from a state or from the beginning.
        save_native: writes a model to a folder for use; None to write none.
        save_start: writes what else a run begins with (its tokenizer) into a folder; None for nothing.
        source: names the model whose weights the run begins with, where it was given; see `build`.
        check_inputs: refuses inputs of a stage that do not belong to the model as it begins; main rank only.
        sampler: makes sample pictures now and then; None for none.
        identity: plain data that a resumed run must share ("stages" is added by stage).
        provenance: plain data to record in each checkpoint: plugin owners and versions.
        encoders: module names that only run backwards when they learn; in eval mode while frozen.
        callbacks: what watches the training; built on every rank.
    """

    stages: tuple[StageBlock, ...]
    engine: EngineBlock
    seed: int
    build: Callable[[bool], nn.Module]
    loader: Callable[[StageBlock, World, Mapping[str, Any] | None], Iterable[Any]]
    save_native: Callable[[nn.Module, Path], None] | None = None
    save_start: Callable[[Path], None] | None = None
    source: str | None = None
    check_inputs: Callable[[nn.Module, StageBlock], None] | None = None
    sampler: Sampler | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    encoders: tuple[str, ...] = ()
    callbacks: tuple[Part, ...] = ()
