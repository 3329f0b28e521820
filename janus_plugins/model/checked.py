"""Run a component of a path and hold it to its contract, so that a mistake in it is told as its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from janus_plugins.core.answered import check_numbers, check_sizes
from janus_plugins.core.blame import advice, blamed, full_name
from janus_plugins.core.errors import PluginError
from janus_plugins.core.plan import GenerationPlan, Part, UnderstandingPlan
from janus_plugins.model.joint import adapt


def features_of(plan: UnderstandingPlan | None, read: Any, items: Any, entering: Sequence[int]) -> Tensor:
    """Return an understanding encoder's features [N, T, C] of collated items.

    Args:
        plan: the path; None checks nothing.
        read: the encoder, or what answers its features.
        items: see `sequence.batch.ItemBatch`.
        entering: how many features of each item count, length N.

    Raises:
        PluginError: it failed, or answered something else than its facts say.
    """
    if plan is None:
        return cast(Tensor, read(items))
    part = plan.encoder
    with blamed(part, "reading a batch of", items):
        features: Tensor = read(items)
    wanted = [("N", len(entering)), ("T", plan.facts.tokens), ("width", plan.facts.width)]
    check_sizes(part, "features", features, wanted)
    have, fixed = features.shape[1], plan.facts.tokens
    wrong = [number for number in entering if number > have or number != (fixed or number)]
    if wrong:
        raise PluginError(
            f"{full_name(part)}: it answered {have} features an item, but its processor's num_tokens counts "
            f"{wrong[0]}; {advice(part)}"
        )
    check_numbers(part, "features", features)
    return features


def embeds_of(
    plan: UnderstandingPlan | GenerationPlan | None,
    adapter: nn.Module,
    source: Tensor,
    lengths: Sequence[int] | None = None,
) -> Tensor:
    """Return an adapter's embeddings [N, T', M] of features, codes or latents; see `model.joint.adapt`.

    Args:
        plan: the path; None checks nothing.
        adapter: the adapter.
        source: what its encoder answered.
        lengths: how many features of each item count, length N; None for an adapter that does not ask.

    Raises:
        PluginError: it failed, or answered something else than its facts say.
    """
    if plan is None:
        return adapt(adapter, source, lengths)
    part, entering = plan.adapter, source.shape[1]
    with blamed(part, f"reading what {plan.encoder.address} answers,", source):
        embeds = adapt(adapter, source, lengths)
    slots = plan.tokens(entering) if isinstance(plan, UnderstandingPlan) else entering
    wanted = [("N", len(source)), ("T", slots), ("width", part.facts.out_width)]
    check_sizes(part, "embeddings", embeds, wanted)
    check_numbers(part, "embeddings", embeds, source)
    return embeds


def tokens_of(part: Part, language_model: Any, ids: Tensor) -> Tensor:
    """Return a language model's embeddings [P, M] of ids [P].

    Raises:
        PluginError: it failed, or answered something else than its facts say.
    """
    with blamed(part, "embedding ids", ids):
        embeds: Tensor = language_model.embed(ids)
    check_sizes(part, "embeddings of ids", embeds, [("P", len(ids)), ("width", part.facts.width)])
    check_numbers(part, "embeddings of ids", embeds, ids)
    return embeds


def losses_of(part: Part, head: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    """Return a head's losses [P] of hidden states [P, M] and what they should have predicted.

    Raises:
        PluginError: it failed, or did not answer one number a position.
    """
    with blamed(part, "the loss of", hidden, "for", targets):
        losses: Tensor = head.loss(hidden, targets)
    check_sizes(part, "losses", losses, [("P", len(hidden))])
    check_numbers(part, "losses", losses, hidden)
    return losses
