"""Run a component of a path and hold it to its contract, so that a mistake in it is told as its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from janus_plugins.core.blame import advice, blamed, full_name
from janus_plugins.core.errors import PluginError
from janus_plugins.core.plan import GenerationPlan, Part, UnderstandingPlan
from janus_plugins.model.joint import adapt

Sizes = Sequence[tuple[str, int | None]]
"""Names and sizes of a tensor's dimensions; None where the item decides."""


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
    if not features.is_floating_point():
        raise PluginError(
            f"{full_name(part)}: its features are {features.dtype}, not floating point; {advice(part)}"
        )
    return features


def codes_of(plan: GenerationPlan | None, encoder: Any, items: Any) -> Tensor:
    """Return a generation encoder's codes [N, T] or [N, T, Q], or latents [N, T, C], of collated items.

    Args:
        plan: the path; None checks nothing.
        encoder: the encoder.
        items: see `sequence.batch.ItemBatch`.

    Raises:
        PluginError: it failed, or answered something else than its facts say.
    """
    if plan is None:
        return cast(Tensor, encoder.encode(items))
    part, facts = plan.encoder, plan.facts
    with blamed(part, "encoding a batch of", items):
        codes: Tensor = encoder.encode(items)
    last = "width" if facts.form == "latents" else "codebooks"
    number = len(next(iter(items.values())))
    check_sizes(part, facts.form, codes, [("N", number), *zip(("T", last), facts.shape, strict=False)])
    if codes.is_floating_point() != (facts.form == "latents"):
        raise PluginError(
            f"{full_name(part)}: its {facts.form} are {codes.dtype}, which cannot be; {advice(part)}"
        )
    return codes


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
    return embeds


def losses_of(part: Part, head: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    """Return a head's losses [P] of hidden states [P, M] and what they should have predicted.

    Raises:
        PluginError: it failed, or did not answer one number a position.
    """
    with blamed(part, "the loss of", hidden, "for", targets):
        losses: Tensor = head.loss(hidden, targets)
    check_sizes(part, "losses", losses, [("P", len(hidden))])
    return losses


def check_sizes(part: Part, what: str, value: object, wanted: Sizes) -> None:
    """Refuse what is no tensor of these dimensions.

    Raises:
        PluginError: saying what was answered and what the facts promise.
    """
    found = tuple(value.shape) if isinstance(value, Tensor) else None
    fits = found is not None and len(found) == len(wanted)
    if fits and all(size in (None, have) for have, (_, size) in zip(found or (), wanted, strict=True)):
        return
    promised = ", ".join(name if size is None else f"{name}={size}" for name, size in wanted)
    answer = f"[{', '.join(map(str, found))}]" if found is not None else f"a {type(value).__name__}"
    raise PluginError(
        f"{full_name(part)}: its {what} are {answer}, but by contract and facts they are a tensor "
        f"[{promised}]; {advice(part)}"
    )


__all__ = [
    "check_sizes",
    "codes_of",
    "embeds_of",
    "features_of",
    "losses_of",
]
