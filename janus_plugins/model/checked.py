"""Run a component of a path and hold it to its contract, so that a mistake in it is told as its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
    part = plan.encoder if plan else None
    with blamed(part, f"reading a batch of {_spelt(items)}"):
        features: Tensor = read(items)
    if plan is None or part is None:
        return features
    wanted = [("N", len(entering)), ("T", plan.facts.tokens), ("width", plan.facts.width)]
    check_sizes(part, "features", features, wanted)
    if entering and features.shape[1] < max(entering):
        raise PluginError(
            f"{full_name(part)}: it answered {features.shape[1]} features an item, but its processor's "
            f"num_tokens counts {max(entering)}; {advice(part)}"
        )
    if not features.is_floating_point():
        raise PluginError(
            f"{full_name(part)}: its features are {features.dtype}, not floating point; {advice(part)}"
        )
    return features


def embeds_of(
    plan: UnderstandingPlan | None, adapter: nn.Module, features: Tensor, entering: Sequence[int] | None
) -> Tensor:
    """Return an adapter's embeddings [N, T', M] of features [N, T, C]; see `model.joint.adapt`.

    Raises:
        PluginError: it failed, or answered something else than its facts say.
    """
    part = plan.adapter if plan else None
    with blamed(part, f"reading features {_spelt(features)} of {plan.encoder.address if plan else ''}"):
        embeds = adapt(adapter, features, entering)
    if plan is not None and part is not None:
        slots = plan.tokens(features.shape[1])
        wanted = [("N", len(features)), ("T", slots), ("width", part.facts.out_width)]
        check_sizes(part, "embeddings", embeds, wanted)
    return embeds


def codes_of(plan: GenerationPlan | None, encoder: Any, items: Any) -> Tensor:
    """Return a generation encoder's codes [N, T] or [N, T, Q], or latents [N, T, C], of collated items.

    Raises:
        PluginError: it failed, or answered something else than its facts say.
    """
    part = plan.encoder if plan else None
    with blamed(part, f"encoding a batch of {_spelt(items)}"):
        codes: Tensor = encoder.encode(items)
    if plan is None or part is None:
        return codes
    facts = plan.facts
    last = "width" if facts.form == "latents" else "codebooks"
    check_sizes(part, facts.form, codes, [("N", None), *zip(("T", last), facts.shape, strict=False)])
    if codes.is_floating_point() != (facts.form == "latents"):
        raise PluginError(
            f"{full_name(part)}: its {facts.form} are {codes.dtype}, which cannot be; {advice(part)}"
        )
    return codes


def embedded_codes(plan: GenerationPlan | None, adapter: nn.Module, codes: Tensor) -> Tensor:
    """Return an adapter's embeddings [N, T, M] of codes or latents.

    Raises:
        PluginError: it failed, or answered something else than its facts say.
    """
    part = plan.adapter if plan else None
    with blamed(part, f"reading {_spelt(codes)} of {plan.encoder.address if plan else ''}"):
        embeds: Tensor = adapter(codes)
    if part is not None:
        wanted = [("N", len(codes)), ("T", codes.shape[1]), ("width", part.facts.out_width)]
        check_sizes(part, "embeddings", embeds, wanted)
    return embeds


def losses_of(part: Part | None, head: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    """Return a head's losses [P] of hidden states [P, M] and what they should have predicted.

    Raises:
        PluginError: it failed, or did not answer one number a position.
    """
    with blamed(part, f"the loss of {_spelt(hidden)} for {_spelt(targets)}"):
        losses: Tensor = head.loss(hidden, targets)
    if part is not None:
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


def _spelt(value: Any) -> str:
    """Return shapes and number formats of a tensor or of collated items."""
    if isinstance(value, Tensor):
        return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_spelt(one)}" for name, one in value.items())
    return f"a {type(value).__name__}"


__all__ = [
    "check_sizes",
    "codes_of",
    "embedded_codes",
    "embeds_of",
    "features_of",
    "losses_of",
]
