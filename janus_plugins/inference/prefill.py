"""Prompts as recorded graphs: of a short one a GPU is done before the host has launched every kernel.

Rows are padded on their right to a multiple of `graph.GRAIN` slots, so that one recording serves prompts of
about one length; a causal model's slots see nothing of what follows them, and later slots write over it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from janus_plugins.core.contracts import Cached
from janus_plugins.inference import graph

MOST_SLOTS = 1024
"""Slots of all rows together that are recorded; more take their time on the device."""

KEPT = 4
"""Recordings, each with its cache; one that was not used for longest is dropped for another."""


@dataclass(frozen=True)
class Recording:
    """Hold what a recorded prompt reads and writes.

    Attributes:
        embeds: input embeddings [B, S, M].
        positions: of every slot [B, S].
        visible: which slots count [B, S] (bool); None for all.
        last: the slot whose hidden states are wanted [1].
        hidden: these [B, M].
        cache: the language model's.
        replay: runs it.
    """

    embeds: Tensor
    positions: Tensor
    visible: Tensor | None
    last: Tensor
    hidden: Tensor
    cache: Any
    replay: Callable[[], None]


class RecordedPrompts:
    """Run prompts through a language model that says `static_prompts = True`: `stream.Prompts`."""

    def __init__(self, language_model: nn.Module) -> None:
        self._model = cast(Any, language_model)
        self._recordings: OrderedDict[tuple[int, int, bool], Recording] = OrderedDict()

    @classmethod
    def of(cls, language_model: nn.Module) -> RecordedPrompts | None:
        """Return what runs a language model's prompts, or None where they cannot be recorded."""
        return cls(language_model) if getattr(language_model, "static_prompts", False) else None

    @classmethod
    def kept(
        cls, recorded: graph.Kept | None, language_model: nn.Module, device: torch.device
    ) -> RecordedPrompts | None:
        """Return those among what was recorded of a model; there are none on a CPU."""
        if recorded is None or device.type == "cpu":
            return None
        if recorded.prompts is None:
            recorded.prompts = cls.of(language_model)
        return cast("RecordedPrompts | None", recorded.prompts)

    def takes(self, rows: int, slots: int) -> bool:
        """Answer whether rows of so many slots are few and short enough."""
        return rows * graph.rounded(slots, graph.GRAIN) <= MOST_SLOTS

    def run(self, embeds: Tensor, positions: Tensor, visible: Tensor | None) -> tuple[Tensor, Any]:
        """Return the last hidden state of each row [B, M], and a cache, which the next call writes over.

        Args:
            embeds: input embeddings [B, S, M].
            positions: of every slot [B, S].
            visible: which slots count [B, S] (bool); None for all.
        """
        rows, slots, _ = embeds.shape
        key = (rows, graph.rounded(slots, graph.GRAIN), visible is None)
        if key not in self._recordings:
            self._recordings[key] = self._recorded(embeds, key[1], visible is not None)
        self._recordings.move_to_end(key)
        while len(self._recordings) > KEPT:
            self._recordings.popitem(last=False)
        made = self._recordings[key]
        made.embeds[:, :slots].copy_(embeds)
        made.embeds[:, slots:].zero_()  # what is not seen is multiplied by zero: a NaN would stay one
        made.positions[:, :slots].copy_(positions)
        if visible is not None and made.visible is not None:
            made.visible[:, :slots].copy_(visible)
        made.last.fill_(slots - 1)
        made.replay()
        return made.hidden.clone(), made.cache

    def _recorded(self, embeds: Tensor, length: int, masked: bool) -> Recording:
        rows, _, width = embeds.shape
        given = embeds.new_zeros(rows, length, width)
        positions = given.new_zeros(rows, length, dtype=torch.int64)
        visible = given.new_ones(rows, length, dtype=torch.bool) if masked else None
        last = given.new_zeros(1, dtype=torch.int64)
        hidden, cache = embeds.new_zeros(rows, width), self._model.new_cache(rows, length)

        def run() -> None:
            made = self._model(given, positions, Cached(0, visible), cache)
            hidden.copy_(made.index_select(1, last)[:, 0])

        replay = graph.recorded(run, embeds.device)
        return Recording(given, positions, visible, last, hidden, cache, replay)
