"""Lay out a user's words as a row of tokens, by the rules that the model was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from torch import Tensor

from janus_plugins.core.errors import RunFileError
from janus_plugins.core.suggest import quoted
from janus_plugins.inference.decode import ItemPrompt
from janus_plugins.inference.switching import AnswerPrompt, Switches
from janus_plugins.inference.words import TextPrompt
from janus_plugins.sequence.layout import plan_generation, plan_interleaved, plan_question
from janus_plugins.sequence.line import ItemSpan, Spelling
from janus_plugins.sequence.templates import special_tokens
from janus_plugins.sequence.turns import Style

if TYPE_CHECKING:
    from janus_plugins.model.unified import UnifiedModel
    from janus_plugins.sequence.tokenizers import TextTokenizer

    Shown = Sequence[tuple[str, Tensor]]


def item_prompt(
    model: UnifiedModel, modality: str, prompt: str, seeds: Sequence[int], shown: Shown = ()
) -> ItemPrompt:
    """Lay out a prompt for items, after what it shows: (modality, embeddings [T, M]) each.

    Raises:
        RunFileError: prompt and item together are longer than the language model's positions.
    """
    conditional, unconditional, spans = plan_generation(
        prompt, modality, _spelling(model), _style(model), _counts(shown)
    )
    # The last code (of blocks: the last block) is chosen, never read: it needs no position.
    slots = model.plan.model.generation[modality].facts.tokens - 1
    _check_length(model, f"the prompt {quoted(prompt)}", len(conditional), slots)
    return ItemPrompt(conditional.tolist(), unconditional.tolist(), seeds, _placed(spans, shown))


def question_prompt(
    model: UnifiedModel, question: str, shown: Shown, system: str | None, seed: int
) -> TextPrompt:
    """Lay out a question about items, given as (modality, embeddings [T, M]); see `plan_question`.

    Raises:
        RunFileError: it is longer than the language model's positions.
    """
    plan = plan_question(question, _counts(shown), _spelling(model), _style(model), system)
    _check_length(model, f"the question {quoted(question)}", len(plan), 0)
    return TextPrompt(plan.ids.tolist(), seed, _placed(plan.spans, shown))


def answer_prompt(
    model: UnifiedModel, prompt: str, shown: Shown, system: str | None, seed: int
) -> AnswerPrompt:
    """Lay out a prompt for an answer of text and items, after what it shows.

    Raises:
        RunFileError: it is longer than the language model's positions.
    """
    plan, unconditional = plan_interleaved(prompt, _counts(shown), _spelling(model), _style(model), system)
    _check_length(model, f"the prompt {quoted(prompt)}", len(plan), 0)
    return AnswerPrompt(plan.ids.tolist(), unconditional.tolist(), seed, _placed(plan.spans, shown))


def switches(model: UnifiedModel) -> Switches:
    """Return the ids that steer an answer: of special tokens only EOS and begin tokens may be picked."""
    spelling = _spelling(model)
    around = {name: spelling.tokens_of(name) for name in model.plan.model.generation}
    begins = {spelling.tokenizer.id_of(tokens.begin): name for name, tokens in around.items()}
    special = {spelling.tokenizer.id_of(token) for token in special_tokens(model.plan.run.model)}
    return Switches(
        eos=spelling.eos,
        pad=spelling.pad,
        begins=begins,
        ends={name: spelling.tokenizer.id_of(tokens.end) for name, tokens in around.items()},
        silent=sorted(special - {spelling.eos, *begins}),
    )


def _counts(shown: Shown) -> list[tuple[str, int]]:
    return [(modality, len(values)) for modality, values in shown]


def _placed(spans: Sequence[ItemSpan], shown: Shown) -> list[tuple[int, Tensor]]:
    return [(span.start, shown[span.item][1]) for span in spans]


def _spelling(model: UnifiedModel) -> Spelling:
    return Spelling(cast("TextTokenizer", model.tokenizer), model.template, model.item_tokens)


def _style(model: UnifiedModel) -> Style:
    """Return how turns were joined in the last stage that trained the language model's paths."""
    styles = [stage.template for stage in model.plan.run.stages if stage.reconstruct is None]
    return styles[-1] if styles else "chat"


def _check_length(model: UnifiedModel, what: str, given: int, following: int) -> None:
    limit = model.plan.model.facts.max_positions
    if given + following > limit:
        more = f" and what follows {following}" if following else ""
        raise RunFileError(
            f"{what} takes {given} positions{more}, but the language model has only {limit} (max_positions); "
            "shorten it"
        )
