"""Answers of text and items: rows that switch between the text head and the generation heads.

A row chooses text until it picks the begin token of a modality. That modality's head then answers for
exactly one item's codes, its end token is put in, and text goes on. Every row takes one slot a step,
whatever it is doing, so that rows in different modes run in one stream, each from its own random numbers.

Under guidance every row has an unconditional one beside it, slot for slot: pads where the row has text,
the same items and tokens around them. That is what training makes of a dropped prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor

from janus_plugins.core.answered import sampled
from janus_plugins.core.choice import choose
from janus_plugins.inference.blaming import blamed_in_step
from janus_plugins.inference.codes import CodeEmbedder
from janus_plugins.inference.decode import row_embeds
from janus_plugins.inference.linears import Linears, fast_linears
from janus_plugins.inference.sampling import SeededDraws
from janus_plugins.inference.stream import Stream, rows_within

if TYPE_CHECKING:
    from janus_plugins.model.unified import UnifiedModel


@dataclass(frozen=True)
class AnswerPrompt:
    """Ask for an answer of text and items.

    Attributes:
        conditional: ids [L]; slots of items hold any id.
        unconditional: as many ids: BOS, pads for text, the tokens around items.
        seed: the row's 64-bit seed.
        items: embeddings of items shown [T, M] and the slot where each begins.
    """

    conditional: Sequence[int]
    unconditional: Sequence[int]
    seed: int
    items: Sequence[tuple[int, Tensor]] = ()


@dataclass(frozen=True)
class Switches:
    """Name the ids that steer an answer.

    Attributes:
        eos: ends it.
        pad: stands in an unconditional row for text.
        begins: begin token -> the modality that it switches to.
        ends: modality -> the token after its item.
        silent: ids that are never picked.
    """

    eos: int
    pad: int
    begins: Mapping[int, str]
    ends: Mapping[str, int]
    silent: Sequence[int]


@dataclass(frozen=True)
class Settings:
    """Set how answers are chosen.

    Attributes:
        guidance: s of an item's classifier-free guidance, `u + s (c - u)`; 1 is without.
        temperature: of items; 0 means greedy.
        text_temperature: of text; 0 means greedy.
        top_p: sample text from the likeliest ids that hold this share of the probability.
        max_new_tokens: most tokens of text in an answer; a begin token is one of them.
        max_items: most items in an answer; then begin tokens are no longer picked.
    """

    guidance: float
    temperature: float
    text_temperature: float
    top_p: float | None
    max_new_tokens: int
    max_items: int


class Writer(Protocol):
    """Take down one answer, as it is made."""

    def text(self, token: int) -> None:
        """Take one token of text."""
        ...

    def begin(self, modality: str) -> None:
        """End the text before an item."""
        ...

    def item(self, modality: str, codes: Tensor) -> None:
        """Take a whole item's codes [T, ...] or latents [T, C]."""
        ...

    def end(self) -> None:
        """End the answer."""
        ...


def write_answers(
    model: UnifiedModel,
    prompts: Sequence[AnswerPrompt],
    writers: Sequence[Writer],
    switches: Switches,
    settings: Settings,
    *,
    max_rows: int | None = None,
    linears: Linears = "packed",
) -> None:
    """Answer every prompt into its writer.

    An answer ends at EOS, after `max_new_tokens`, and where the language model has no positions left;
    an item that would not fit is not begun.

    Args:
        model: the unified model.
        prompts: ids, items and seeds.
        writers: one a prompt.
        switches: the ids that steer an answer.
        settings: how it is chosen.
        max_rows: most rows of the language model at once (default: by the memory of the cache); an
            answer takes two of them under guidance.
        linears: how linear layers compute; see `inference.linears`.
    """
    most = max(model.plan.model.generation[name].facts.tokens for name in switches.ends)
    facts = model.plan.model.facts
    following = settings.max_new_tokens + settings.max_items * (most + 1)
    length = min(facts.max_positions, max(len(prompt.conditional) for prompt in prompts) + following)
    bytes_each = next(model.language_model.parameters()).element_size()
    rows = max_rows or rows_within(facts, length, bytes_each)
    at_once = max(1, rows // (1 + (settings.guidance != 1)))
    parts = [part for path in model.generation.values() for part in (path.adapter, path.head)]
    with fast_linears(linears, model.language_model, *cast(Any, parts)):
        for first in range(0, len(prompts), at_once):
            batch = slice(first, first + at_once)
            _Batch(model, prompts[batch], writers[batch], switches, settings, following).run()


class _Row:
    """Follow one answer: in text, or in an item, and how much it may still take."""

    def __init__(
        self, writer: Writer, draws: SeededDraws, free: int, switches: Switches, settings: Settings
    ) -> None:
        self.writer, self.draws, self._switches = writer, draws, switches
        self.slots = free
        self._tokens, self._items = settings.max_new_tokens, settings.max_items
        self.modality: str | None = None
        self.codes: list[Tensor] = []
        self.whole = False
        self.done = False
        self.ids = (switches.pad, switches.pad)

    def may_begin(self, tokens: int) -> bool:
        """Answer whether an item of so many codes fits; its last code is chosen, never read."""
        return self._items > 0 and self.slots >= tokens

    def take_token(self, token: int) -> None:
        """Go on with a token of text."""
        self._tokens -= 1
        if token == self._switches.eos:
            self._finish()
        elif token in self._switches.begins:
            self.modality, self.codes = self._switches.begins[token], []
            self._items -= 1
            self.ids = (token, token)
            self.writer.begin(self.modality)
        else:
            self.ids = (token, self._switches.pad)
            self.writer.text(token)
            if self._tokens == 0 or self.slots == 0:
                self._finish()

    def take_code(self, code: Tensor, tokens: int) -> None:
        """Go on with a code of an item of `tokens` codes."""
        self.codes.append(code)
        if len(self.codes) < tokens:
            return
        self.whole = True
        self.writer.item(cast(str, self.modality), torch.stack(self.codes).cpu())
        if self._tokens == 0 or self.slots < 2:
            self._finish()

    def close_item(self) -> None:
        """Put the end token after a whole item; text goes on behind it."""
        end = self._switches.ends[cast(str, self.modality)]
        self.ids, self.modality, self.whole = (end, end), None, False

    def _finish(self) -> None:
        self.done, self.modality, self.ids = True, None, (self._switches.pad, self._switches.pad)
        self.writer.end()


class _Batch:
    """Run some answers side by side."""

    def __init__(
        self,
        model: UnifiedModel,
        prompts: Sequence[AnswerPrompt],
        writers: Sequence[Writer],
        switches: Switches,
        settings: Settings,
        following: int,
    ) -> None:
        self._model, self._switches, self._settings = model, switches, settings
        self._language_model = cast(Any, model.language_model)
        self._embedders: dict[str, CodeEmbedder] = {}
        self._silent = torch.tensor(switches.silent, dtype=torch.int64, device=model.device)
        self._twice = settings.guidance != 1
        positions = model.plan.model.facts.max_positions
        self._rows = [
            _Row(
                writer,
                SeededDraws([prompt.seed], model.device),
                positions - len(prompt.conditional),
                switches,
                settings,
            )
            for prompt, writer in zip(prompts, writers, strict=True)
        ]
        given = [(prompt.conditional, prompt.items) for prompt in prompts]
        if self._twice:
            given += [(prompt.unconditional, prompt.items) for prompt in prompts]
        embeds = [row_embeds(self._language_model, ids, items, model.device) for ids, items in given]
        room = max(min(following, row.slots) for row in self._rows)
        self._stream = Stream(
            model.language_model, embeds, room, positions, part=model.plan.model.language_model
        )

    def run(self) -> None:
        """Take steps until every answer has ended."""
        self._pick()
        while not all(row.done for row in self._rows):
            self._stream.step(self._embeds())
            self._pick()

    def _pick(self) -> None:
        live = [index for index, row in enumerate(self._rows) if not row.done]
        speaking = [index for index in live if self._rows[index].modality is None]
        drawing = [index for index in live if self._rows[index].modality and not self._rows[index].whole]
        for index in live:
            if self._rows[index].whole:
                self._rows[index].close_item()
        if speaking:
            for index, token in zip(speaking, self._tokens(speaking).tolist(), strict=True):
                self._rows[index].take_token(token)
        for name in self._switches.ends:
            rows = [index for index in drawing if self._rows[index].modality == name]
            if rows:
                tokens = self._tokens_of(name)
                for index, code in zip(rows, self._codes(name, rows), strict=True):
                    self._rows[index].take_code(code, tokens)

    def _tokens(self, rows: list[int]) -> Tensor:
        """Choose text [b] for some rows."""
        hidden = self._stream.hidden[rows]
        with blamed_in_step(self._model.plan.model.text_head, "the logits of", hidden):
            logits = self._language_model.text_head.logits(hidden)
        logits = logits[:, : len(self._model.tokenizer)].float().index_fill(1, self._silent, -torch.inf)
        for place, index in enumerate(rows):
            for begin, name in self._switches.begins.items():
                if not self._rows[index].may_begin(self._tokens_of(name)):
                    logits[place, begin] = -torch.inf
        settings = self._settings
        return choose(
            logits, temperature=settings.text_temperature, draws=self._draws(rows), top_p=settings.top_p
        )

    def _codes(self, name: str, rows: list[int]) -> Tensor:
        """Choose codes [b, ...] or latents [b, C] for some rows, under guidance."""
        hidden = self._stream.hidden
        others = hidden[[index + len(self._rows) for index in rows]] if self._twice else None
        return sampled(
            self._model.plan.model.generation[name],
            cast(Any, self._model.generation[name]).head,
            hidden[rows],
            others,
            guidance=self._settings.guidance,
            temperature=self._settings.temperature,
            draws=self._draws(rows),
        )

    def _embeds(self) -> Tensor:
        """Embed what every row goes on with [B', M], conditional rows first."""
        kinds = range(1 + self._twice)
        ids = [row.ids[kind] for kind in kinds for row in self._rows]
        embeds = cast(Tensor, self._language_model.embed(torch.tensor(ids, device=self._model.device)))
        for name in self._switches.ends:
            rows = [index for index, row in enumerate(self._rows) if row.modality == name and row.codes]
            if rows:
                values = self._embedded(name, rows).to(embeds.dtype)
                for kind in kinds:
                    at = [index + kind * len(self._rows) for index in rows]
                    embeds = embeds.index_copy(0, torch.tensor(at, device=embeds.device), values)
        for row in self._rows:
            row.slots -= 1
        return embeds

    def _embedded(self, name: str, rows: list[int]) -> Tensor:
        """Embed the last code of some rows [b, M]."""
        if name not in self._embedders:
            plan = self._model.plan.model.generation[name]
            adapter = cast(Any, self._model.generation[name]).adapter
            self._embedders[name] = CodeEmbedder(adapter, plan.facts, len(self._rows), plan.adapter)
        embedder = self._embedders[name]
        if embedder.alike:
            return embedder(torch.stack([torch.stack(self._rows[index].codes[-1:]) for index in rows]))
        return torch.cat([embedder(torch.stack(self._rows[index].codes)[None]) for index in rows])

    def _draws(self, rows: list[int]) -> _TheirDraws:
        return _TheirDraws([self._rows[index].draws for index in rows])

    def _tokens_of(self, name: str) -> int:
        return self._model.plan.model.generation[name].facts.tokens


class _TheirDraws:
    """Draw for some rows, each from its own stream: implements `core.contracts.Draws`."""

    def __init__(self, rows: Sequence[SeededDraws]) -> None:
        self._rows = rows

    def uniform(self) -> Tensor:
        return torch.cat([row.uniform() for row in self._rows])

    def normal(self, *shape: int) -> Tensor:
        return torch.cat([row.normal(*shape) for row in self._rows])
