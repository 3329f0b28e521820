"""Answers in which text and items follow one another, as the model itself decides.

It needs a model that has learnt to begin items (a stage with `learn_begin`); others answer in text alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from janus_plugins.core.errors import RunFileError
from janus_plugins.inference import checks, paths
from janus_plugins.inference.artefacts import Generated, Interleaved
from janus_plugins.inference.events import Event, ItemFinished, ItemStarted, Spoken, TextPiece
from janus_plugins.inference.linears import Linears
from janus_plugins.inference.prompts import answer_prompt, switches
from janus_plugins.inference.sampling import row_seed
from janus_plugins.inference.session import evaluating
from janus_plugins.inference.switching import Settings, write_answers

if TYPE_CHECKING:
    from janus_plugins.model.unified import UnifiedModel


def interleave(
    model: UnifiedModel,
    prompts: str | Sequence[str],
    *,
    images: object = None,
    items: Mapping[str, object] | None = None,
    guidance: float = 5.0,
    temperature: float = 1.0,
    text_temperature: float = 0.0,
    top_p: float | None = None,
    max_new_tokens: int = 512,
    max_items: int = 4,
    seed: int = 0,
    system: str | None = None,
    max_rows: int | None = None,
    linears: Linears = "packed",
    only: Sequence[int] | None = None,
    on_event: Callable[[Event], None] | None = None,
    on_made: Callable[[Interleaved], None] | None = None,
) -> list[Interleaved]:
    """Answer each prompt with text and items.

    An answer is a function of the model, the settings, the prompt with its items, and how often the same
    text came before it in the call: not of the other prompts.

    Args:
        model: the unified model.
        prompts: one prompt or several.
        images: images that the prompt shows, as in `session.generate`.
        items: the same for any modality: modality -> items.
        guidance: s of classifier-free guidance of items, `u + s (c - u)`; 1 is without.
        temperature: of items; 0 means greedy.
        text_temperature: of text; 0 means greedy.
        top_p: sample text from the likeliest tokens that hold this share of the probability; at a
            `text_temperature` above 0.
        max_new_tokens: most tokens of text in an answer; those that begin an item count.
        max_items: most items in an answer.
        seed: of the whole call.
        system: system prompt (default: the template's; "" for none).
        max_rows: most rows of the language model at once, of which an answer takes two under guidance
            (default: by the memory of the cache).
        linears: how linear layers compute on a CPU; see `session.generate`.
        only: places in the list of prompts; those alone are answered, as in the whole call (default: all).
        on_event: called with every `TextPiece`, `ItemStarted` and `ItemFinished` as it comes.
        on_made: called with every answer as soon as it has ended, which may be out of order.

    Returns:
        One answer a prompt. Items are made on the way: an `ItemFinished` holds the artefact.

    Raises:
        RunFileError: an argument out of range, an unknown modality, a prompt that is too long, or a
            model that makes no items.
        BadSample: an item that cannot be read, or other marks than items.
    """
    texts = checks.texts_of(prompts, "prompt")
    checks.check_not_negative(guidance=guidance, temperature=temperature, text_temperature=text_temperature)
    checks.check_counts(max_new_tokens=max_new_tokens, max_items=max_items, max_rows=max_rows)
    checks.check_seed(seed)
    checks.check_system(system)
    checks.check_top_p(top_p, text_temperature=text_temperature)
    checks.check_linears(linears)
    if not model.plan.model.generation:
        raise RunFileError("this model has no generation path, so its answers hold no items; use ask")
    _check_single_codes(model)
    given = checks.items_by_question(images, items, len(texts), isinstance(prompts, str), "prompt")
    settings = Settings(guidance, temperature, text_temperature, top_p, max_new_tokens, max_items)
    places = checks.chosen(only, len(texts))
    numbers = [index for (index,) in checks.numbered(texts, 1)]
    texts, numbers = [texts[place] for place in places], [numbers[place] for place in places]
    given = [given[place] for place in places]
    emit, hand_over = on_event or (lambda event: None), on_made or (lambda answer: None)
    writers = [
        _Writer(model, place, text, index, seed, settings, emit, hand_over)
        for place, text, index in zip(places, texts, numbers, strict=True)
    ]
    checks.check_marked(texts, given, paths.marks(model), items)
    with evaluating(model):
        rows = [
            answer_prompt(model, text, shown, system, row_seed(seed, text, index))
            for text, index, shown in zip(texts, numbers, paths.embed_given(model, given), strict=True)
        ]
        write_answers(model, rows, writers, switches(model), settings, max_rows=max_rows, linears=linears)
    return [writer.answer() for writer in writers]


def _check_single_codes(model: UnifiedModel) -> None:
    """Refuse paths that predict blocks of codes: rows that write text and make items take one slot a step."""
    for address in model.plan.model.starts():
        raise RunFileError(
            f"an answer of text and items takes one code a step, but the path of {address} predicts blocks "
            "(parallel); make its items one by one, without interleaved"
        )


class _Writer:
    """Take down one answer: implements `switching.Writer`.

    Attributes:
        parts: text and items so far, in order; no part is empty text.
    """

    def __init__(
        self,
        model: UnifiedModel,
        row: int,
        prompt: str,
        index: int,
        seed: int,
        settings: Settings,
        emit: Callable[[Event], None],
        hand_over: Callable[[Interleaved], None],
    ) -> None:
        self._model, self._row, self._prompt, self._seed = model, row, prompt, seed
        self._index, self._settings, self._emit, self._hand_over = index, settings, emit, hand_over
        self.parts: list[str | Generated] = []
        self._ids: list[int] = []
        self._spoken = Spoken(model.tokenizer.decode)
        self._items = 0

    def text(self, token: int) -> None:
        self._ids.append(token)
        self._say(self._spoken.more(self._ids))

    def begin(self, modality: str) -> None:
        self._end_text()
        self._emit(ItemStarted(self._row, modality, self._items))

    def item(self, modality: str, codes: Tensor) -> None:
        (artefact,) = paths.decode_items(self._model, modality, codes[None])
        settings = self._settings
        made = Generated(
            self._prompt,
            self._seed,
            self._items,
            artefact,
            codes,
            modality,
            settings.guidance,
            settings.temperature,
        )
        self._items += 1
        self.parts.append(made)
        self._emit(ItemFinished(self._row, made))

    def end(self) -> None:
        self._end_text()
        self._hand_over(self.answer())

    def answer(self) -> Interleaved:
        return Interleaved(self._prompt, self._seed, self._index, tuple(self.parts))

    def _end_text(self) -> None:
        self._say(self._spoken.rest(self._ids))
        if self._spoken.text:
            self.parts.append(self._spoken.text)
        self._ids, self._spoken = [], Spoken(self._model.tokenizer.decode)

    def _say(self, piece: str) -> None:
        if piece:
            self._emit(TextPiece(self._row, piece))
