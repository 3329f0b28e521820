"""A whole run: one stage after another, from the beginning or from the furthest good checkpoint."""

from __future__ import annotations

import atexit
import platform
import signal
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from janus_plugins.core.catalogue import catalogue_for
from janus_plugins.core.contracts import TrainingRun
from janus_plugins.core.errors import Interrupted, PluginError, RunFileError
from janus_plugins.core.plan import RunPlan
from janus_plugins.training.callbacks import Callbacks
from janus_plugins.training.checkpoint import Checkpoints, Found, Position, begun_tokenizer, keeps_weights
from janus_plugins.training.ds_config import deepspeed_config
from janus_plugins.training.guard import StopSignals, locked
from janus_plugins.training.loop import Run, Tally
from janus_plugins.training.metrics import Metrics, Sampler
from janus_plugins.training.nonfinite import BadSteps
from janus_plugins.training.plan_recipe import Start, plan_recipe
from janus_plugins.training.recipe import Recipe
from janus_plugins.training.resume import run_identity, start_from
from janus_plugins.training.stages import train_stages
from janus_plugins.training.world import World, close_world, open_world


@dataclass(frozen=True)
class TrainResult:
    """Say what a run has done.

    Attributes:
        out: its folder.
        model: the native folder of the trained model, where one was written.
        steps: optimiser steps of the whole run.
        skipped_steps: steps whose loss or gradient was not finite.
        bad_samples: samples that could not be read.
        seconds: time in each stage, by name.
        is_main: whether this process is the one to go on with evaluation and reports.
        device: where this process trained.
    """

    out: Path
    model: Path | None
    steps: int
    skipped_steps: int
    bad_samples: int
    seconds: dict[str, float]
    is_main: bool
    device: torch.device


def train(
    plan: RunPlan,
    out: Path,
    *,
    only_stage: str | None = None,
    resume: bool = False,
    sampler: Sampler | None = None,
    start: Start | None = None,
    console: Console | None = None,
) -> TrainResult:
    """Train a run's stages into a folder.

    Args:
        plan: the resolved run file.
        out: the run's folder; see docs/training.md for what is written there.
        only_stage: train this stage alone, from the end of the one before.
        resume: go on from the furthest checkpoint that verifies.
        sampler: makes sample pictures every `engine.sample_every` steps.
        start: what the run begins with: its first stage or, with `only_stage`, that one.
        console: where to print.

    Raises:
        RunFileError, CheckpointError, DataError, NonFiniteError, Interrupted: see each.
    """
    world = open_world()
    _compare_catalogues(world, plan)
    later = [stage.name for stage in plan.run.stages[1:]]
    goes_on = resume or (start is None and only_stage in later)
    tokenizer = begun_tokenizer(out / "checkpoints") if goes_on else None
    kept = goes_on and keeps_weights(out / "checkpoints")
    recipe = world.together(lambda: plan_recipe(plan, sampler, start, tokenizer, kept))
    result = run_recipe(recipe, out, world, only_stage=only_stage, resume=resume, console=console)
    atexit.register(close_world)
    return result


def _compare_catalogues(world: World, plan: RunPlan) -> None:
    digests = world.gather((platform.node(), catalogue_for(plan.run).digest()))
    for rank, (node, digest) in enumerate(digests):
        if digest != digests[0][1]:
            raise PluginError(
                f"rank {rank} on {node} has other plugins installed than rank 0 on {digests[0][0]}; compare "
                "`janus-plugins plugins` on both and install the same versions"
            )


def run_recipe(
    recipe: Recipe,
    out: Path,
    world: World,
    *,
    only_stage: str | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> TrainResult:
    """Train a recipe's stages into a folder. See `train`."""
    if recipe.engine.threads:
        torch.set_num_threads(recipe.engine.threads)
    chosen = _chosen(recipe, only_stage)
    for index in chosen:
        deepspeed_config(recipe.engine, recipe.stages[index], world.size)
    with ExitStack() as stack:
        holds: list[Callable[[], None]] = []  # of the main rank
        world.from_main(lambda: holds.append(stack.enter_context(locked(out))))
        metrics = Metrics(out, active=world.is_main, log_every=recipe.engine.log_every, console=console)
        stack.enter_context(metrics)
        checkpoints = Checkpoints(
            out / "checkpoints", world, run_identity(recipe), recipe.engine.keep, *holds
        )
        found = world.from_main(
            lambda: start_from(recipe, checkpoints, metrics.say, chosen, only_stage, resume)
        )
        signals = stack.enter_context(StopSignals().watching())
        run = _open_run(recipe, out, world, checkpoints, metrics, signals, found)
        position = _watched(run, lambda: train_stages(run, out, chosen, found))
        _heed_late_signal(run, out)
    model = out / "model" if recipe.save_native else None
    tally = run.tally
    skipped, bad = run.bad_steps.total, tally.bad_samples
    return TrainResult(out, model, position.total, skipped, bad, tally.seconds, world.is_main, world.device)


def _heed_late_signal(run: Run, out: Path) -> None:
    """Stop alike where a signal came in the last step or later: nothing is left to train."""
    number = max(run.world.gather(run.signals.received))
    if number:
        raise Interrupted(
            f"stopped by {signal.Signals(number).name} at the end of training; everything is saved: "
            f"go on with --resume, which evaluates, or `janus-plugins evaluate {out}`",
            number,
        )


def _watched(run: Run, work: Callable[[], Position]) -> Position:
    """Do the work between the callbacks' first moment and their last, whatever happens in it."""
    error: BaseException | None = None
    try:
        run.callbacks.tell("on_train_start")
        run.settle()
        return work()
    except BaseException as raised:
        error = raised
        raise
    finally:
        for problem in run.callbacks.train_ended(error):
            run.metrics.say(f"warning: {problem}")


def _chosen(recipe: Recipe, only_stage: str | None) -> list[int]:
    names = [stage.name for stage in recipe.stages]
    if not names:
        raise RunFileError("the run file has no stages; add at least one under 'stages'")
    if only_stage is None:
        return list(range(len(names)))
    if only_stage not in names:
        raise RunFileError(f"no stage is called {only_stage!r}; the run file has {', '.join(names)}")
    return [names.index(only_stage)]


def _open_run(
    recipe: Recipe,
    out: Path,
    world: World,
    checkpoints: Checkpoints,
    metrics: Metrics,
    signals: StopSignals,
    found: Found | None,
) -> Run:
    facts = found.manifest if found else {}
    bad_steps = BadSteps(recipe.engine.nonfinite_limit, out / "nonfinite", **facts.get("bad_steps", {}))
    step = found.position.total if found else 0
    callbacks = Callbacks(
        recipe.callbacks, TrainingRun(out, rank=world.rank, world_size=world.size, step=step)
    )
    callbacks.load(facts.get("callbacks", {}), inside_stage=found is not None and found.kind == "step")
    metrics.start(step)
    tally = Tally(**facts.get("tally", {}))
    return Run(recipe, world, checkpoints, metrics, signals, bad_steps, tally, callbacks)
