"""Lay out a user's words as a row of tokens, by the rules that the model was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from torch import Tensor

from janus_plugins.core.errors import RunFileError
from janus_plugins.inference.decode import ItemPrompt
from janus_plugins.inference.words import TextPrompt
from janus_plugins.sequence.layout import plan_generation, plan_question
from janus_plugins.sequence.line import Spelling
from janus_plugins.sequence.turns import Style

if TYPE_CHECKING:
    from janus_plugins.model.unified import UnifiedModel
    from janus_plugins.sequence.tokenizers import TextTokenizer

    Shown = Sequence[tuple[str, Tensor]]


def item_prompt(model: UnifiedModel, modality: str, prompt: str, seeds: Sequence[int]) -> ItemPrompt:
    """Lay out a prompt for items.

    Raises:
        RunFileError: prompt and item together are longer than the language model's positions.
    """
    conditional, unconditional = plan_generation(prompt, modality, _spelling(model), _style(model))
    # The last code is chosen, never read: it needs no position.
    slots = model.plan.model.generation[modality].facts.tokens - 1
    _check_length(model, f"the prompt {_short(prompt)}", len(conditional), slots)
    return ItemPrompt(conditional.tolist(), unconditional.tolist(), seeds)


def question_prompt(
    model: UnifiedModel, question: str, shown: Shown, system: str | None, seed: int
) -> TextPrompt:
    """Lay out a question about items, given as (modality, embeddings [T, M]), before its text.

    Raises:
        RunFileError: it is longer than the language model's positions.
    """
    counts = [(modality, len(values)) for modality, values in shown]
    plan = plan_question(question, counts, _spelling(model), _style(model), system)
    _check_length(model, f"the question {_short(question)}", len(plan), 0)
    items = [(span.start, shown[span.item][1]) for span in plan.spans]
    return TextPrompt(plan.ids.tolist(), seed, items)


def _spelling(model: UnifiedModel) -> Spelling:
    return Spelling(cast("TextTokenizer", model.tokenizer), model.template, model.item_tokens)


def _style(model: UnifiedModel) -> Style:
    """Return how turns were joined in the last stage that trained the language model's paths."""
    styles = [stage.template for stage in model.plan.run.stages if stage.reconstruct is None]
    return styles[-1] if styles else "chat"


def _check_length(model: UnifiedModel, what: str, given: int, following: int) -> None:
    limit = model.plan.model.facts.max_positions
    if given + following > limit:
        raise RunFileError(
            f"{what} takes {given} positions and what follows {following}, but the language model has only "
            f"{limit} (max_positions); shorten it"
        )


def _short(text: str, limit: int = 60) -> str:
    return repr(text if len(text) <= limit else f"{text[:limit]}…")
