"""Train a run's stages one after another, each from the end of the one before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from janus_plugins.core.errors import CheckpointError
from janus_plugins.core.schema import StageBlock
from janus_plugins.data.order import key_of
from janus_plugins.model.lora import under
from janus_plugins.training.checkpoint import Found, Position
from janus_plugins.training.engine import Engine, linear_restored
from janus_plugins.training.loop import Run, StageLoop
from janus_plugins.training.lora import Updates, add_updates, check_lora, lora_label, merge_updates
from janus_plugins.training.optim import Learning, choose_learning, rate_factor, set_trainable
from janus_plugins.training.random_state import seed_all
from janus_plugins.training.recipe import Recipe
from janus_plugins.training.weights import (
    Kept,
    begun_weights,
    full_weights,
    keep_frozen,
    load_weights,
)
from janus_plugins.training.world import World

SLOW_BF16 = (
    "note: this CPU has no instructions for bf16: products are computed in fp32 and rounded, so a step takes "
    "about as long as with engine.precision=fp32; bf16 only saves memory"
)


def train_stages(run: Run, out: Path, chosen: list[int], found: Found | None) -> Position:
    """Train the chosen stages that are not behind `found`, and return where the run has come to."""
    if run.recipe.engine.precision == "bf16" and not run.world.multiplies_bf16:
        run.metrics.say(SLOW_BF16)
    position = found.position if found else Position(chosen[0], 0, 0)
    run.checkpoints.begun = found.begun if found else chosen[0]
    if found and found.kind == "stage":
        if found.position.stage in chosen:  # it may have died between this and writing the model
            _write_native(
                run, out / "model", _stage_end(run, found.position.stage) if run.world.is_main else None
            )
        position = Position(found.position.stage + 1, 0, found.position.total)
    for index in chosen:
        if index < position.stage:
            continue
        inside = found if found and found.kind == "step" and found.position.stage == index else None
        position = _train_stage(run, out, Position(index, position.step, position.total), inside)
        run.world.collect_garbage()  # or a stage's model and moments stay beside the next one's
        run.settle(over=index == chosen[-1])
    return position


def _train_stage(run: Run, out: Path, start: Position, found: Found | None) -> Position:
    """Train one stage, save its end, and return where the next begins."""
    recipe, world, stage = run.recipe, run.world, run.recipe.stages[start.stage]
    begins = start.stage == run.checkpoints.begun
    model = world.together(lambda: recipe.build(True) if begins else _stage_end(run, start.stage - 1))
    for later in recipe.stages[start.stage + 1 :]:
        choose_learning(model, later)  # a wrong name is found now, not when its stage begins
        check_lora(model, later)
    learning = choose_learning(model, stage)
    if begins and found:
        run.checkpoints.load_start(model)
    elif begins:
        rounds = recipe.engine.precision != "fp32" or recipe.source is not None
        run.checkpoints.save_start(begun_weights(model, learning) if rounds else {}, recipe.save_start)
    if recipe.check_inputs is not None:
        check, whole = recipe.check_inputs, model
        world.from_main(lambda: check(whole, stage))
    seed = key_of(recipe.seed, stage.name, "lora")
    updates, learning = add_updates(model, stage, learning, seed)
    set_trainable(model, learning)
    run.metrics.say(describe_stage(stage, learning, world))
    for name in undone_stages(recipe.stages, start.stage):
        run.metrics.say(
            f"  note: this stage changes what codes mean that stage {name} has learnt to use; train encoders "
            "before what uses their codes"
        )
    kept = keep_frozen(model, learning, world, recipe.engine.precision)
    with linear_restored():
        engine = Engine(model, stage, recipe.engine, learning, world)
        _set_modes(engine, recipe, learning)
        seed_all(recipe.seed, stage.name, world.rank)
        run.metrics.begin_stage(stage, start.step)
        state = run.checkpoints.load_step(found, engine) if found else None
        _show_stage(run, stage, start, engine.module)
        end = StageLoop(run, engine, start, state).finish()
        run.callbacks.run.stage_end = None
        run.callbacks.tell("on_stage_end")
        weights, average = _final_weights(engine, world, kept, stage, updates)
        engine.close()
    run.callbacks.run.model = None
    if average is not None:
        _write_native(run, out / "model-ema", _rebuilt(run, stage, average) if world.is_main else None)
    finished = _rebuilt(run, stage, weights) if world.is_main else None
    folder = run.checkpoints.save_stage(end, finished, run.facts())
    _write_native(run, out / "model", finished)
    run.callbacks.tell("on_checkpoint", folder)
    return Position(end.stage + 1, 0, end.total)


def _show_stage(run: Run, stage: StageBlock, start: Position, model: nn.Module) -> None:
    """Show the callbacks a stage that begins, or is gone on with."""
    shown = run.callbacks.run
    shown.stage, shown.stage_step, shown.stage_steps = stage.name, start.step, stage.last_step
    shown.step, shown.model = start.total, model
    run.callbacks.tell("on_stage_start")


def _final_weights(
    engine: Engine, world: World, kept: Kept, stage: StageBlock, updates: Updates
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor] | None]:
    """Return the plain weights that a stage ends with, and its average where that is kept apart."""
    averaged = stage.ema is not None
    ends_averaged = averaged and stage.ema_export is not False
    weights = merge_updates(full_weights(engine, world, kept, ends_averaged), updates)
    if not averaged or ends_averaged:
        return weights, None
    return weights, merge_updates(full_weights(engine, world, kept, True), updates)


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


def _write_native(run: Run, folder: Path, model: nn.Module | None) -> None:
    """Write the model at the end of a stage to a folder, for use. The main rank gives the model.

    Raises:
        CheckpointError: the folder holds something else, or the disk is full.
    """

    def write() -> None:
        if model is None or run.recipe.save_native is None:
            return
        try:
            run.recipe.save_native(model, folder)
        except (CheckpointError, OSError) as error:
            raise CheckpointError(
                f"{folder} could not be written: {error.__cause__ or error}\nthe checkpoints are intact: "
                "make room, or move away what is in the way, and go on with --resume"
            ) from error

    run.world.from_main(write)


def undone_stages(stages: Sequence[StageBlock], index: int) -> list[str]:
    """Return the earlier stages that learnt to use the codes whose encoder a stage trains by its own loss."""
    modality = stages[index].reconstruct
    users = [f"generation.{modality}.{role}" for role in ("adapter", "head")]
    return [
        stage.name
        for stage in stages[:index]
        if modality is not None and stage.reconstruct is None
        if any(under(user, prefix) or under(prefix, user) for user in users for prefix in stage.learn)
    ]


def describe_stage(stage: StageBlock, learning: Learning, world: World) -> str:
    """Return what a stage learns and what it leaves frozen, with counts."""
    total = sum(learning.by_pattern.values())
    lines = [f"stage {stage.name}: {stage.last_step} steps of {stage.batch} samples on {world.size} rank(s)"]
    width = max(map(len, learning.by_pattern))
    rates = {**stage.learn, **{lora_label(name): block.rate for name, block in (stage.lora or {}).items()}}
    for pattern, count in learning.by_pattern.items():
        lines.append(f"  learns {pattern:<{width}} {count:>13,} values at {rates[pattern]:g}")
    lines.append(f"  learns {'altogether':<{width}} {total:>13,} values; {learning.frozen:,} are frozen")
    if stage.schedule.warmup > stage.last_step:
        share = rate_factor(stage.schedule, stage.last_step - 1, stage.steps)
        lines.append(
            f"  note: warm-up takes {stage.schedule.warmup} steps, more than the stage has; the rates reach "
            f"{share:.1%} of theirs"
        )
    return "\n".join(lines)
