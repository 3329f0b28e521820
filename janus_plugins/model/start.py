"""Start from another model's weights: those of a checkpoint, whatever its layout was."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch import nn

from janus_plugins.core.errors import CheckpointError
from janus_plugins.core.plan import ModelPlan
from janus_plugins.model.unified import UnifiedModel
from janus_plugins.sequence.templates import special_tokens
from janus_plugins.sequence.tokenizers import vocabulary_of

_log = logging.getLogger(__name__)


def take_weights(model: UnifiedModel, other: UnifiedModel, source: str) -> None:
    """Copy every weight of `other` into `model`, in the precision of `model`.

    Start embeddings that `other` never had stay fresh: a model that was trained to predict one code at a time
    may go on in blocks. Options that leave the shapes as they are, and that the two give differently, are
    named in a warning: they may change what the weights mean (`normalize` of siglip) or not (a drop-out).

    Args:
        model: the run's model.
        other: the checkpoint's model; both must have the same parts, sizes and special tokens.
        source: names the checkpoint in messages.

    Raises:
        CheckpointError: the two differ, with the first names, both shapes or both ids.
    """
    _same_tokens(model, other, source)
    given, own = dict(other.named_parameters()), dict(model.named_parameters())
    for address in model.plan.model.starts().keys() - other.plan.model.starts().keys():
        own = {name: value for name, value in own.items() if not name.startswith(f"{address}.")}
    _same_names(own, given, source)
    for difference in _differences(model.plan.model, other.plan.model):
        _log.warning("%s: %s", source, difference)
    buffers = dict(other.named_buffers())
    kept = {name: value for name, value in model.named_buffers() if name in buffers}
    with torch.no_grad():
        for name, value in [*own.items(), *kept.items()]:
            value.copy_(given[name] if name in given else buffers[name])


def _same_names(own: dict[str, nn.Parameter], given: dict[str, nn.Parameter], source: str) -> None:
    missing, unknown = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    if missing or unknown:
        lacks = f"lacks {missing[0]} ({len(missing)} such)" if missing else ""
        has = f"has {unknown[0]} ({len(unknown)} such), which the run's model has not" if unknown else ""
        raise CheckpointError(
            f"{source} {' and '.join(filter(None, (lacks, has)))}; make the run file's 'model' that of the "
            "checkpoint (config.yaml in its native form)"
        )
    for name, value in own.items():
        ours, theirs = tuple(value.shape), tuple(given[name].shape)
        if ours != theirs:
            raise CheckpointError(
                f"{source}: {name} is {theirs}, but the run's model has {ours}; make that part's options "
                "those of the checkpoint"
            )


def _differences(own: ModelPlan, given: ModelPlan) -> Iterator[str]:
    """Yield the options of like parts that differ; None leaves one to others and says nothing."""
    theirs = {part.address: part for part in given.parts()}
    for part in own.parts():
        other = theirs.get(part.address)
        if other is None or other.spec.name != part.spec.name:
            continue
        before = dict(other.config)
        for name, value in part.config:
            was = before.get(name)
            if value is not None and was is not None and value != was:
                yield f"{part.address}: {name} was {was!r:.60} there and is {value!r:.60} in the run"


def _same_tokens(model: UnifiedModel, other: UnifiedModel, source: str) -> None:
    for token in special_tokens(model.plan.run.model):
        _same_id(token, model.tokenizer.id_of(token), other.tokenizer.id_of(token), source)
    ours, theirs = vocabulary_of(model.tokenizer), vocabulary_of(other.tokenizer)
    if ours is None or theirs is None or ours == theirs:
        return
    for token, identity in sorted(theirs.items(), key=lambda entry: entry[1]):
        _same_id(token, ours.get(token), identity, source)


def _same_id(token: str, ours: int | None, theirs: int, source: str) -> None:
    if ours != theirs:
        raise CheckpointError(
            f"{source}: {token!r} has id {theirs} in its tokenizer and {ours} in the run's; use the "
            "checkpoint's tokenizer (language_model.tokenizer: {type: pretrained, path: its tokenizer.json})"
        )
