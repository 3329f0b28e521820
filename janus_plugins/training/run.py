"""A whole run: one stage after another, from the beginning or from the furthest good checkpoint."""

from __future__ import annotations

import atexit
import platform
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from janus_plugins.core.catalogue import catalogue
from janus_plugins.core.errors import CheckpointError, PluginError, RunFileError
from janus_plugins.core.plan import RunPlan
from janus_plugins.core.schema import StageBlock
from janus_plugins.training.checkpoint import Checkpoints, Found, Position, differences
from janus_plugins.training.ds_config import deepspeed_config, zero_stage
from janus_plugins.training.engine import Engine
from janus_plugins.training.guard import StopSignals, locked
from janus_plugins.training.loop import Run, StageLoop, Tally
from janus_plugins.training.metrics import Metrics, Sampler
from janus_plugins.training.nonfinite import BadSteps
from janus_plugins.training.optim import Learning, choose_learning, set_trainable
from janus_plugins.training.plan_recipe import plan_recipe
from janus_plugins.training.publish import read_manifest, sweep
from janus_plugins.training.random_state import seed_all
from janus_plugins.training.recipe import Recipe
from janus_plugins.training.weights import full_weights, keep_frozen, load_weights
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
    """

    out: Path
    model: Path | None
    steps: int
    skipped_steps: int
    bad_samples: int
    seconds: dict[str, float]
    is_main: bool


def train(
    plan: RunPlan,
    out: Path,
    *,
    only_stage: str | None = None,
    resume: bool = False,
    sampler: Sampler | None = None,
    console: Console | None = None,
) -> TrainResult:
    """Train a run's stages into a folder.

    Args:
        plan: the resolved run file.
        out: the run's folder; see docs/training.md for what is written there.
        only_stage: train this stage alone, from the end of the one before.
        resume: go on from the furthest checkpoint that verifies.
        sampler: makes sample pictures every `engine.sample_every` steps.
        console: where to print.

    Raises:
        RunFileError, CheckpointError, DataError, NonFiniteError, Interrupted: see each.
    """
    world = open_world()
    _compare_catalogues(world)
    result = run_recipe(
        plan_recipe(plan, sampler), out, world, only_stage=only_stage, resume=resume, console=console
    )
    atexit.register(close_world)
    return result


def _compare_catalogues(world: World) -> None:
    digests = world.gather((platform.node(), catalogue().digest()))
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
        world.from_main(lambda: stack.enter_context(locked(out)) and None)
        metrics = Metrics(out, active=world.is_main, log_every=recipe.engine.log_every, console=console)
        stack.enter_context(metrics)
        checkpoints = Checkpoints(out / "checkpoints", world, _identity(recipe), recipe.engine.keep)
        found = world.from_main(lambda: _start_from(recipe, checkpoints, metrics, chosen, only_stage, resume))
        signals = stack.enter_context(StopSignals().watching())
        run = _open_run(recipe, out, world, checkpoints, metrics, signals, found)
        position = _train_stages(run, out, chosen, found)
    model = out / "model" if recipe.save_native else None
    tally = run.tally
    return TrainResult(
        out, model, position.total, run.bad_steps.total, tally.bad_samples, tally.seconds, world.is_main
    )


def _chosen(recipe: Recipe, only_stage: str | None) -> list[int]:
    names = [stage.name for stage in recipe.stages]
    if not names:
        raise RunFileError("the run file has no stages; add at least one under 'stages'")
    if only_stage is None:
        return list(range(len(names)))
    if only_stage not in names:
        raise RunFileError(f"no stage is called {only_stage!r}; the run file has {', '.join(names)}")
    return [names.index(only_stage)]


def _identity(recipe: Recipe) -> dict[str, Any]:
    """Return what a resumed run must share, as plain data."""
    return {
        **recipe.identity,
        "seed": recipe.seed,
        "engine": {
            "precision": recipe.engine.precision,
            "accumulate": recipe.engine.accumulate,
            "zero_stage": zero_stage(recipe.engine),
        },
        "stages": [stage.model_dump(mode="json") for stage in recipe.stages],
    }


def _start_from(
    recipe: Recipe,
    checkpoints: Checkpoints,
    metrics: Metrics,
    chosen: list[int],
    only_stage: str | None,
    resume: bool,
) -> Found | None:
    """Find what to start from: a checkpoint, or None for the very beginning. Main rank only."""
    sweep(checkpoints.root)
    first = chosen[0]
    if not resume:
        _refuse_overwriting(checkpoints, first, only_stage)
        if first == 0:
            return None
    elif only_stage is not None:
        metrics.say(f"resuming stage {only_stage} alone")
    found = checkpoints.find(metrics.say, None if only_stage is None else first)
    _refuse_changes(found, _identity(recipe), checkpoints.root)
    metrics.say(f"going on from {checkpoints.root / found.name} (step {found.position.total})")
    return found


def _refuse_overwriting(checkpoints: Checkpoints, first: int, only_stage: str | None) -> None:
    """Refuse to start what is already there; one stage alone may start on the end of the one before."""
    names = [name for name in checkpoints.started() if not _is_before(name, first, checkpoints)]
    if names:
        raise CheckpointError(
            f"{checkpoints.root} already holds {', '.join(names[:4])}: go on with --resume, or choose "
            "another folder with --out"
        )
    if first and first - 1 not in checkpoints.stages():
        raise CheckpointError(
            f"stage {only_stage!r} starts from the end of the stage before it, but {checkpoints.root} has no "
            f"stage_{first - 1}; train that one first"
        )


def _is_before(name: str, first: int, checkpoints: Checkpoints) -> bool:
    try:
        return int(read_manifest(checkpoints.root / name)["position"]["stage"]) < first
    except (CheckpointError, KeyError, TypeError):
        return False


def _refuse_changes(found: Found, own: dict[str, Any], root: Path) -> None:
    """Refuse a run file that differs in what the checkpoint was trained with; later stages may change."""
    saved = dict(found.manifest.get("identity", {}))
    begun = found.position.stage + 1
    ours = {**own, "stages": own["stages"][:begun]}
    lines = differences({**saved, "stages": saved.get("stages", [])[:begun]}, ours)
    if found.kind == "stage":  # how the next stage runs is free
        lines = [line for line in lines if not line.startswith("engine.")]
    if lines:
        listed = "\n  ".join(lines[:12])
        raise CheckpointError(
            f"{root / found.name} belongs to another run:\n  {listed}\nundo this, or start anew with --out"
        )


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
    metrics.start(found.position.total if found else 0)
    return Run(recipe, world, checkpoints, metrics, signals, bad_steps, Tally(**facts.get("tally", {})))


def _train_stages(run: Run, out: Path, chosen: list[int], found: Found | None) -> Position:
    position = found.position if found else Position(chosen[0], 0, 0)
    if found and found.kind == "stage":
        if found.position.stage in chosen:  # it may have died between this and writing the model
            _write_native(run, out, _stage_end(run, found.position.stage) if run.world.is_main else None)
        position = Position(found.position.stage + 1, 0, found.position.total)
    for index in chosen:
        if index < position.stage:
            continue
        inside = found if found and found.kind == "step" and found.position.stage == index else None
        position = _train_stage(run, out, Position(index, position.step, position.total), inside)
    return position


def _train_stage(run: Run, out: Path, start: Position, found: Found | None) -> Position:
    """Train one stage, save its end, and return where the next begins."""
    recipe, world, stage = run.recipe, run.world, run.recipe.stages[start.stage]
    model = recipe.build(True) if start.stage == 0 else _stage_end(run, start.stage - 1)
    for later in recipe.stages[start.stage + 1 :]:
        choose_learning(model, later)  # a wrong name is found now, not when its stage begins
    learning = choose_learning(model, stage)
    set_trainable(model, learning)
    run.metrics.say(describe_stage(stage, learning, world))
    kept = keep_frozen(model, learning, world, recipe.engine.precision)
    engine = Engine(model, stage, recipe.engine, learning, world)
    _set_modes(engine, recipe, learning)
    seed_all(recipe.seed, stage.name, world.rank)
    run.metrics.begin_stage(stage, start.step)
    state = run.checkpoints.load_step(found, engine) if found else None
    end = StageLoop(run, engine, start, state).finish()
    weights = full_weights(engine, world, kept)
    engine.close()
    finished = _rebuilt(run, stage, weights) if world.is_main else None
    run.checkpoints.save_stage(end, finished, run.facts())
    _write_native(run, out, finished)
    return Position(end.stage + 1, 0, end.total)


def _set_modes(engine: Engine, recipe: Recipe, learning: Learning) -> None:
    """Put the model in training mode, but for frozen encoders."""
    engine.deepspeed.train()
    for name in recipe.encoders:
        if not any(learnt.startswith(name + ".") for learnt in learning.rates):
            engine.module.get_submodule(name).eval()


def _stage_end(run: Run, index: int) -> nn.Module:
    """Return a fresh model as it was at the end of a stage."""
    model = run.recipe.build(False)
    run.checkpoints.load_stage(index, model)
    return model


def _rebuilt(run: Run, stage: StageBlock, weights: dict[str, torch.Tensor]) -> nn.Module:
    """Return a fresh model with a stage's weights, as the next stage will start from them.

    After a generation encoder was trained by its own loss, its codes mean something else: the tables of
    codes in the adapters are taken from it anew.
    """
    model = run.recipe.build(False)
    load_weights(model, weights)
    refresh = getattr(model, "init_tables", None)
    if stage.reconstruct is not None and refresh is not None:
        refresh()
    return model


def _write_native(run: Run, out: Path, model: nn.Module | None) -> None:
    """Write the model at the end of a stage to `out/model`, for use. The main rank gives the model."""
    if model is not None and run.recipe.save_native is not None:
        run.recipe.save_native(model, out / "model")
    run.world.barrier()


def describe_stage(stage: StageBlock, learning: Learning, world: World) -> str:
    """Return what a stage learns and what it leaves frozen, with counts."""
    total = sum(learning.by_pattern.values())
    lines = [f"stage {stage.name}: {stage.last_step} steps of {stage.batch} samples on {world.size} rank(s)"]
    width = max(map(len, learning.by_pattern))
    for pattern, count in learning.by_pattern.items():
        lines.append(f"  learns {pattern:<{width}} {count:>13,} values at {stage.learn[pattern]:g}")
    lines.append(f"  learns {'altogether':<{width}} {total:>13,} values; {learning.frozen:,} are frozen")
    return "\n".join(lines)
