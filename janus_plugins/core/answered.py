"""What a language model and a generation path answer is held to their facts: a mistake is told as its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from janus_plugins.core.blame import advice, blamed, full_name
from janus_plugins.core.errors import PluginError
from janus_plugins.core.facts import GenerationFacts
from janus_plugins.core.plan import GenerationPlan, Part

if TYPE_CHECKING:
    from torch import Tensor

Sizes = Sequence[tuple[str, int | None]]
"""Names and sizes of a tensor's dimensions; None where the item decides."""

_watcher: ContextVar[Callable[[Part, str, Any], None] | None] = ContextVar("watcher", default=None)


@contextmanager
def watched(seen: Callable[[Part, str, Any], None]) -> Iterator[None]:
    """Call `seen` with what components answer inside the block, in order: whose part, what it is, the tensor.

    Of answers that are floating point; codes are none.
    """
    before = _watcher.set(seen)
    try:
        yield
    finally:
        _watcher.reset(before)


def codes_of(plan: GenerationPlan | None, encoder: Any, items: Any, wait: bool = False) -> Tensor:
    """Return a generation encoder's codes [N, T] or [N, T, Q], or latents [N, T, C], of collated items.

    Args:
        plan: the path; None checks nothing.
        encoder: the encoder.
        items: see `sequence.batch.ItemBatch`.
        wait: whether the codes' range is checked where a device has to be waited for, too.

    Raises:
        PluginError: it failed, or answered something else than its facts say.
    """
    if plan is None:
        return encoder.encode(items)  # type: ignore[no-any-return]
    part, facts = plan.encoder, plan.facts
    with blamed(part, "encoding a batch of", items):
        codes: Tensor = encoder.encode(items)
    number = len(next(iter(items.values())))
    _check_made(part, facts, codes, [("N", number), ("T", facts.tokens)])
    return check_codes(plan, part, codes) if wait or codes.device.type == "cpu" else codes


def sampled(plan: GenerationPlan, head: Any, hidden: Tensor, others: Tensor | None, **options: Any) -> Tensor:
    """Return what a head samples next: codes [B] or [B, Q], or latents [B, C]; see `core.contracts.Head`.

    Args:
        plan: the path.
        head: its head.
        hidden: conditional rows [B, M].
        others: unconditional rows [B, M], or None.
        options: of `sample`.

    Raises:
        PluginError: it failed, or answered something else than its path's facts say.
    """
    part, facts = plan.head, plan.facts
    with blamed(part, "sampling from", hidden):
        chosen: Tensor = head.sample(hidden, others, **options)
    _check_made(part, facts, chosen, [("B", len(hidden))])
    # Another device would have to be waited for.
    return check_codes(plan, part, chosen) if chosen.device.type == "cpu" else chosen


def check_codes(plan: GenerationPlan, part: Part, codes: Tensor) -> Tensor:
    """Return the codes, or latents, that a path's head sampled or its encoder made.

    Args:
        plan: the path.
        part: which of its parts they are from.
        codes: of any shape.

    Raises:
        PluginError: some of them are no codes of its encoder.
    """
    size = plan.facts.codebook_size
    if size is None or not codes.numel():
        return codes
    least, most = int(codes.min()), int(codes.max())
    if least < 0 or most >= size:
        raise PluginError(
            f"{full_name(part)}: its codes reach from {least} to {most}, but codes of "
            f"{plan.encoder.address} are 0 to {size - 1}; {advice(part)}"
        )
    return codes


def decoded_of(plan: GenerationPlan, encoder: Any, codes: Tensor) -> Tensor:
    """Return what a generation encoder makes [N, ...] of codes [N, T] or [N, T, Q], or latents [N, T, C].

    Raises:
        PluginError: it failed, or did not answer one item for each.
    """
    part = plan.encoder
    with blamed(part, "decoding", codes):
        decoded: Tensor = encoder.decode(codes)
    shape = getattr(decoded, "shape", ())
    check_sizes(part, "decoded items", decoded, [("N", len(codes)), *(("...", size) for size in shape[1:])])
    return decoded


def hidden_of(part: Part | None, language_model: Any, embeds: Tensor, *how: Any) -> Tensor:
    """Return a language model's hidden states [B, S, M] of embeddings [B, S, M].

    Args:
        part: the language model's; None checks nothing.
        language_model: it.
        embeds: its input.
        how: positions, attention and cache, as its `forward` takes them.

    Raises:
        PluginError: it failed, or answered something else than its facts say.
    """
    if part is None:
        return language_model(embeds, *how)  # type: ignore[no-any-return]
    with blamed(part, "reading embeddings", embeds):
        hidden: Tensor = language_model(embeds, *how)
    wanted = [("B", embeds.shape[0]), ("S", embeds.shape[1]), ("width", part.facts.width)]
    check_sizes(part, "hidden states", hidden, wanted)
    check_numbers(part, "hidden states", hidden, embeds)
    return hidden


def check_numbers(part: Part, what: str, value: Tensor, source: Tensor | None = None) -> None:
    """Refuse numbers that are not floating point, or not on the device of what they were made of.

    Raises:
        PluginError: saying which they are.
    """
    if not value.is_floating_point():
        raise PluginError(
            f"{full_name(part)}: its {what} are {value.dtype}, not floating point; {advice(part)}"
        )
    if source is not None and value.device != source.device:
        raise PluginError(
            f"{full_name(part)}: its {what} are on {value.device}, but what it was given is on "
            f"{source.device}; {advice(part)}"
        )
    seen = _watcher.get()
    if seen is not None:
        seen(part, what, value)


def _check_made(part: Part, facts: GenerationFacts, made: Tensor, first: Sizes) -> None:
    """Refuse what are no codes or latents of these facts; `first` are the sizes before a slot's own."""
    last = "width" if facts.form == "latents" else "codebooks"
    check_sizes(part, facts.form, made, [*first, *((last, size) for size in facts.shape[1:])])
    if made.is_floating_point() != (facts.form == "latents"):
        raise PluginError(
            f"{full_name(part)}: its {facts.form} are {made.dtype}, which cannot be; {advice(part)}"
        )


def check_sizes(part: Part, what: str, value: object, wanted: Sizes) -> None:
    """Refuse what is no tensor of these dimensions.

    Raises:
        PluginError: saying what was answered and what the facts promise.
    """
    from torch import Tensor

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
