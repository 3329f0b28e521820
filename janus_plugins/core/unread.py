"""Find what a run file sets and nothing reads: a setting without effect is a mistake, and is refused."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel

from janus_plugins.core.plan import RunPlan
from janus_plugins.core.schema import TOKENIZER_KEYS, StageBlock, TokenizerBlock

_OF_SAMPLES = (
    "template",
    "loss_on",
    "loss_mean",
    "drop_prompt",
    "drop_to",
    "first_sentence",
    "close_generated",
    "learn_begin",
)
"""How a stage lays samples out and weighs their losses; under `reconstruct` items alone are read."""


def unread(plan: RunPlan) -> Iterator[str]:
    """Yield a problem for each setting that has no effect, beginning with where it stands."""
    yield from _unread_tokenizer(plan.run.model.language_model.tokenizer)
    for name, data in plan.data.items():
        if data.block.precomputed is not None and data.block.split == "test":
            here = f"data.{name}"
            yield f"{here}.precomputed: only training reads it, and {here} has split: test; leave it out"


def unread_in_stage(stage: StageBlock) -> Iterator[str]:
    """Yield a problem for each setting of a stage that has no effect, beginning with its key."""
    for key in _OF_SAMPLES if stage.reconstruct is not None else ():
        if _is_set(stage, key):
            yield (
                f"{key}: is about samples in the language model, and this stage has reconstruct: "
                f"{stage.reconstruct}, which trains on items alone; leave it out"
            )


def _unread_tokenizer(block: TokenizerBlock) -> Iterator[str]:
    for key, reader in TOKENIZER_KEYS.items():
        if reader != block.type and _is_set(block, key):
            yield (
                f"language_model.tokenizer.{key}: a tokenizer of type {block.type} does not read it, one of "
                f"type {reader} does; leave it out"
            )


def _is_set(block: BaseModel, key: str) -> bool:
    """Answer whether a value is another than its default: saved run files spell defaults out."""
    return bool(getattr(block, key) != type(block).model_fields[key].default)
