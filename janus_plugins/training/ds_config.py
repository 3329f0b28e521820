"""The configuration that DeepSpeed gets: the run file's block, plus what only we can fill in."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from janus_plugins.core.errors import RunFileError
from janus_plugins.core.schema import EngineBlock, StageBlock
from janus_plugins.training.ds_keys import check_deepspeed

_OURS = {
    "optimizer": "stages[].optimizer and stages[].learn",
    "scheduler": "stages[].schedule",
    "fp16": "engine.precision (fp32 or bf16)",
    "train_batch_size": "stages[].batch",
    "train_micro_batch_size_per_gpu": "stages[].batch and engine.accumulate",
}
"""DeepSpeed's keys that say what the run file says elsewhere, and where."""

_GUARDS = (
    (("zero_optimization", "compute_grad_norm"), True),
    (("bf16", "check_grad_overflow"), True),
)
"""Keys without which a non-finite gradient would not be noticed before the step."""


def deepspeed_config(engine: EngineBlock, stage: StageBlock, world_size: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration for one stage.

    Samples are packed into rows before they reach DeepSpeed, so its batch sizes count micro-batches.

    Raises:
        RunFileError: `engine.deepspeed` sets something that the run file sets elsewhere, or that DeepSpeed
            does not know or refuses; or a stage that reconstructs has too few items for its micro-batches.
    """
    _check_items(engine, stage, world_size)
    config = copy.deepcopy(engine.deepspeed)
    for key, place in _OURS.items():
        if key in config:
            raise RunFileError(
                f"engine.deepspeed.{key}: this is set by {place}; remove it from engine.deepspeed"
            )
    filled = {
        ("train_micro_batch_size_per_gpu",): (1, "packing"),
        ("train_batch_size",): (
            engine.accumulate * world_size,
            "engine.accumulate times the number of ranks",
        ),
        ("gradient_accumulation_steps",): (engine.accumulate, "engine.accumulate"),
        ("gradient_clipping",): (stage.clip or 0.0, f"stages.{stage.name}.clip"),
        ("bf16", "enabled"): (engine.precision == "bf16", "engine.precision"),
    }
    for path, (value, place) in filled.items():
        _fill(config, path, value, place)
    for path, value in _GUARDS:
        if path[0] in config:
            _fill(config, path, value, "the guard against non-finite gradients")
    config.setdefault("zero_allow_untested_optimizer", True)
    config.setdefault("zero_force_ds_cpu_optimizer", False)
    config.setdefault("steps_per_print", None)
    zero_stage(engine)
    check_deepspeed(engine.deepspeed, config)
    return config


def _check_items(engine: EngineBlock, stage: StageBlock, world_size: int) -> None:
    """Refuse micro-batches of padding alone where it would move what moves in the forward pass."""
    parts = engine.accumulate * world_size
    if stage.reconstruct is not None and stage.batch < parts:
        raise RunFileError(
            f"stages.{stage.name}.batch: {stage.batch} items are fewer than the {parts} micro-batches of a "
            f"step (engine.accumulate {engine.accumulate} times {world_size} ranks); the others would hold "
            "padding, from which codebooks and running means learn, too. Raise the batch, or lower "
            "engine.accumulate"
        )


def zero_stage(engine: EngineBlock) -> int:
    """Return the ZeRO stage that a run asks for: 0 to 3.

    Raises:
        RunFileError: it asks for something else.
    """
    block = engine.deepspeed.get("zero_optimization", {})
    stage = block.get("stage", 0) if isinstance(block, Mapping) else block
    if isinstance(stage, bool) or not isinstance(stage, int) or not 0 <= stage <= 3:
        raise RunFileError(f"engine.deepspeed.zero_optimization.stage is {stage!r}; use 0, 1, 2 or 3")
    return stage


def _fill(config: dict[str, Any], path: tuple[str, ...], value: object, place: str) -> None:
    block = config
    for key in path[:-1]:
        block = block.setdefault(key, {})
        if not isinstance(block, dict):
            raise RunFileError(f"engine.deepspeed.{key} is {block!r}; it must be a mapping")
    key = path[-1]
    if key in block and block[key] != value:
        raise RunFileError(
            f"engine.deepspeed.{'.'.join(path)} is {block[key]!r} but {place} says {value!r}; "
            f"remove engine.deepspeed.{'.'.join(path)}"
        )
    block[key] = value
