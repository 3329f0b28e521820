"""Rows of different lengths running through the language model and its static cache.

Rows are padded on the left, so that all of them end at the same slot; padding is invisible and a
row's positions start at 0 at its first real token. A row therefore computes the same with any batch
mates. What the rows mean, and what is chosen from their hidden states, is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from janus_plugins.core.answered import hidden_of
from janus_plugins.core.contracts import Cached
from janus_plugins.core.facts import LanguageModelFacts
from janus_plugins.core.plan import Part
from janus_plugins.inference.halves import widened

CACHE_BUDGET = 4 * 2**30
"""Bytes of keys and values that one batch may hold where the caller sets no `max_rows`.

A constant, not a share of the free memory: the same call cuts the same batches on every machine.
"""


class Prompts(Protocol):
    """Run given rows some other way than slot by slot; see `inference.prefill`."""

    def takes(self, rows: int, slots: int) -> bool:
        """Answer whether it runs rows of so many slots."""
        ...

    def run(self, embeds: Tensor, positions: Tensor, visible: Tensor | None) -> tuple[Tensor, Any]:
        """Return the last hidden state of each row [B, M], and a cache that holds their slots."""
        ...


class Stream:
    """Run left-padded rows: all their given slots once, then one slot at a time.

    Args:
        language_model: see `core.contracts.LanguageModel`.
        embeds: input embeddings of each given row [length, M].
        room: slots that will follow.
        max_positions: positions that the language model can tell apart; a row that has ended while
            others go on stays at the last one.
        copies: continue with these rows, by index: [B] (default: with each row once). What a row
            was given is computed once for all its copies, where the cache offers `select(rows)`.
        recorded: what runs the given rows as a recorded graph, where they fit it; the cache may then be
            theirs alone, until `lengthen`.
        part: the language model's, by which its hidden states are checked; None checks nothing.

    Attributes:
        hidden: last hidden state of each row [B, M].
        given: slots that have run.
        first: slots that had run before the first step.
        cache: the language model's.
    """

    _visible: Tensor | None

    def __init__(
        self,
        language_model: nn.Module,
        embeds: Sequence[Tensor],
        room: int,
        max_positions: int,
        copies: Sequence[int] | None = None,
        recorded: Prompts | None = None,
        part: Part | None = None,
    ) -> None:
        self._model, self._part = cast(Any, language_model), part
        self._max_positions = max_positions
        self.given = max(len(row) for row in embeds)
        self.first = self.given
        length = self.given + room
        self._borrows = recorded is not None and recorded.takes(len(embeds), self.given)
        if recorded is not None and self._borrows:
            self._place(embeds, length)
            visible = None if self._visible is None else self._visible[:, : self.given]
            positions = self._positions[:, : self.given].expand(len(embeds), -1)
            self.hidden, self.cache = recorded.run(pad_left(embeds, self.given), positions, visible)
        else:
            self.cache = self._model.new_cache(len(embeds), length)
            if copies is not None and not hasattr(self.cache, "select"):
                embeds, copies = [embeds[index] for index in copies], None
                self.cache = self._model.new_cache(len(embeds), length)
            self._place(embeds, length)
            self.hidden = self._run(pad_left(embeds, self.given), 0)
        if copies is not None:
            self._expand(torch.tensor(copies, device=self.hidden.device))

    def lengthen(self) -> None:
        """Give the rows a cache of their own for all slots there will be."""
        if self._borrows:
            self.cache, self._borrows = self.cache.longer(self.shape[1]), False

    @property
    def shape(self) -> tuple[int, int]:
        """Return rows and slots of the cache."""
        return len(self.hidden), self._positions.shape[1]

    @property
    def padded(self) -> bool:
        """Answer whether any slot is hidden from those after it."""
        return self._visible is not None

    def planned(self) -> tuple[Tensor, Tensor]:
        """Return the position [B, L] of every slot there will be, and which count [B, L] (bool)."""
        rows, length = len(self.hidden), self._positions.shape[1]
        visible = torch.ones(rows, length, dtype=torch.bool, device=self.hidden.device)
        positions = self._positions.expand(rows, -1).contiguous()
        return positions, visible if self._visible is None else self._visible.clone()

    def step(self, embeds: Tensor) -> None:
        """Append one slot to every row [B, M]."""
        self.given += 1
        self.hidden = self._run(embeds[:, None], self.given - 1)

    def look(self, embeds: Tensor) -> Tensor:
        """Run slots [B, S, M] as if they followed; return their hidden states [B, S, M]. See `keep`."""
        stop = self.given + embeds.shape[1]
        visible = None if self._visible is None else self._visible[:, :stop]
        plan = Cached(self.given, visible)
        return self._through(embeds, self._positions[:, self.given : stop], plan)

    def keep(self, slots: int) -> None:
        """Keep the first slots of the last `look`; the next one writes over the rest."""
        self.given += slots

    def place(self, embeds: Tensor, ahead: Tensor, seen: Tensor) -> Tensor:
        """Run slots [B, S, M] that do not follow one another; return their hidden states [B, S, M].

        Args:
            embeds: input embeddings.
            ahead: how many positions after each row's first step each slot lies [S].
            seen: which of the slots since then each one sees, itself included [S, slots so far + S] (bool).
        """
        start, first, steps = self.given, self.first, embeds.shape[1]
        positions, visible = self.planned()
        before = visible[:, None, :first].expand(-1, steps, -1)
        mask = torch.cat((before, seen.expand(len(before), -1, -1)), -1)
        at = (positions[:, first : first + 1] + ahead).clamp(max=self._max_positions - 1)
        self.given += steps
        return self._through(embeds, at, Cached(start, mask))

    def extend(self, rows: Sequence[Tensor]) -> None:
        """Append several slots to every row [length, M]; shorter ones are padded on their left."""
        start, width = self.given, max(len(row) for row in rows)
        pads = width - torch.tensor([[len(row)] for row in rows], device=rows[0].device)
        slots = torch.arange(self.shape[1], device=rows[0].device)
        positions, visible = self.planned()
        following = (positions[:, start : start + 1] + (slots - start - pads).clamp(min=0)).clamp(
            max=self._max_positions - 1
        )
        self._positions = torch.where(slots < start, positions, following)
        if any(len(row) != width for row in rows):
            self._visible = visible & ((slots < start) | (slots >= start + pads))
        self.given += width
        self.hidden = self._run(pad_left(rows, width), start)

    def replace(self, rows: Sequence[int], other: Stream) -> None:
        """Put the rows of another stream in the place of the named ones; what those held is forgotten.

        Needs caches that offer `put` and `shift`.
        """
        if other.given > self.given:
            self.shift(other.given - self.given)
        at = torch.tensor(rows, device=self.hidden.device)
        start, length = self.given - other.given, self.shape[1]
        positions, visible = self.planned()
        theirs, seen = other.planned()
        following = theirs[:, other.given - 1 :][:, :1] + torch.arange(
            1, length - self.given + 1, device=at.device
        )
        empty = torch.zeros(len(rows), start, dtype=torch.int64, device=at.device)
        positions[at] = torch.cat((empty, theirs[:, : other.given], following), 1)
        visible[at] = torch.cat((empty.bool(), seen[:, : other.given], following >= 0), 1)
        self._positions, self._visible = positions.clamp(max=self._max_positions - 1), visible
        self.cache.put(at, other.cache, start, other.given)
        self.hidden = self.hidden.index_copy(0, at, other.hidden)

    def forget(self, rows: Sequence[int]) -> None:
        """Let the named rows see nothing of what they held; they go on idle."""
        positions, visible = self.planned()
        visible[torch.tensor(rows, dtype=torch.int64, device=visible.device), : self.given] = False
        self._positions, self._visible = positions, visible

    def make_room(self) -> None:
        """Drop the slots before the first that any row sees."""
        seen = self.planned()[1][:, : self.given].any(0).nonzero()
        self.shift(-int(seen[0]) if len(seen) else -self.given + 1)

    def shift(self, by: int) -> None:
        """Move everything in the cache by so many slots, to the right where it is positive."""
        if by == 0:
            return
        positions, visible = self.planned()
        length = self.shape[1]
        source = (torch.arange(length, device=positions.device) - by).clamp(0, length - 1)
        last = positions[:, -1:] + (torch.arange(length, device=positions.device) - by - length + 1).clamp(
            min=0
        )
        self._positions = torch.where(source < length - 1, positions[:, source], last).clamp(
            max=self._max_positions - 1
        )
        self._visible = visible[:, source] & (torch.arange(length, device=visible.device) >= by)
        self.cache.shift(by)
        self.given += by

    def _place(self, embeds: Sequence[Tensor], length: int) -> None:
        """Plan positions [B, length] and visibility [B, length] of every slot there will be."""
        device = embeds[0].device
        pads = self.given - torch.tensor([[len(row)] for row in embeds], device=device)
        slots = torch.arange(length, device=device)
        self._positions = (slots - pads).clamp(0, self._max_positions - 1)
        padded = any(len(row) != self.given for row in embeds)
        self._visible = slots >= pads if padded else None

    def _expand(self, rows: Tensor) -> None:
        self.cache = self.cache.select(rows)
        self._positions = self._positions[rows]
        self._visible = None if self._visible is None else self._visible[rows]
        self.hidden = self.hidden[rows]

    def _run(self, embeds: Tensor, start: int) -> Tensor:
        visible = None if self._visible is None else self._visible[:, : self.given]
        positions = self._positions[:, start : self.given]
        return self._through(embeds, positions, Cached(start, visible))[:, -1]

    def _through(self, embeds: Tensor, positions: Tensor, plan: Cached) -> Tensor:
        """Run the language model over slots [B, S, M]."""
        with widened(self._model, embeds.shape[0] * embeds.shape[1]):
            return hidden_of(self._part, self._model, embeds, positions, plan, self.cache)


def pad_left(rows: Sequence[Tensor], length: int) -> Tensor:
    """Stack rows [n, M] to [B, length, M], zeros on the left."""
    padded = rows[0].new_zeros(len(rows), length, rows[0].shape[-1])
    for index, row in enumerate(rows):
        padded[index, length - len(row) :] = row
    return padded


def rows_within(facts: LanguageModelFacts, length: int, bytes_each: int, budget: int = CACHE_BUDGET) -> int:
    """Return how many rows of `length` slots keep their keys and values in `budget` bytes; at least 1.

    Args:
        facts: the language model's.
        length: slots of one row.
        bytes_each: size of one number in the cache.
        budget: bytes.
    """
    width = facts.width // facts.num_heads * facts.num_key_value_heads
    row = 2 * facts.num_layers * width * length * bytes_each
    return max(1, budget // row)
