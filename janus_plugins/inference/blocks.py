"""Decode items whose codes are predicted in blocks: a pass of the language model makes a block, not a code.

The same as the loop of `inference/decode.py` with wider steps: what a pass made goes back in as its slots,
which see one another and everything before, and answer for the next block. Random numbers are still one
stream a row.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from janus_plugins.core.contracts import Cached, Draws
from janus_plugins.core.errors import RunFileError
from janus_plugins.inference.stream import pad_left

if TYPE_CHECKING:
    from janus_plugins.model.unified import GenerationPath


class BlockStream:
    """Run left-padded rows: all their given slots once, then several slots at a time.

    Args:
        language_model: see `core.contracts.LanguageModel`; its facts say `bidirectional`.
        embeds: input embeddings of each given row [length, M].
        length: slots of a row altogether, the longest given row and all that follows.
        block: how many of the last given slots see one another.
        copies: continue with these rows, by index [B]; what a row was given is computed once for all
            its copies, where the cache offers `select(rows)`.

    Attributes:
        hidden: hidden states of the last `block` slots of each row [B, block, M].
    """

    def __init__(
        self,
        language_model: nn.Module,
        embeds: Sequence[Tensor],
        length: int,
        block: int,
        copies: Sequence[int],
    ) -> None:
        self._model = cast(Any, language_model)
        self._cache = self._model.new_cache(len(embeds), length)
        shared = hasattr(self._cache, "select") and list(copies) != list(range(len(embeds)))
        if not shared and list(copies) != list(range(len(embeds))):
            embeds = [embeds[index] for index in copies]
            self._cache = self._model.new_cache(len(embeds), length)
        given = max(len(row) for row in embeds)
        device = embeds[0].device
        pads = given - torch.tensor([[len(row)] for row in embeds], device=device)
        slots = torch.arange(length, device=device)
        self._positions = (slots - pads).clamp(min=0)
        self._visible = slots >= pads if any(len(row) != given for row in embeds) else None
        self._filled = 0
        self.step(pad_left(embeds, given), block)
        if shared:
            self._expand(torch.tensor(copies, device=device))

    def step(self, embeds: Tensor, block: int) -> None:
        """Append slots [B, S, M] to every row, of which the last `block` see one another."""
        start, stop = self._filled, self._filled + embeds.shape[1]
        self._filled = stop
        visible = None if self._visible is None else self._visible[:, :stop]
        plan = Cached(start, visible, block=block)
        self.hidden = self._model(embeds, self._positions[:, start:stop], plan, self._cache)[:, -block:]

    def _expand(self, rows: Tensor) -> None:
        self._cache = self._cache.select(rows)
        self._positions = self._positions[rows]
        self._visible = None if self._visible is None else self._visible[rows]
        self.hidden = self.hidden[rows]


class BlockDraws:
    """Draw for a block of codes a row from the row's own stream: implements `core.contracts.Draws`.

    Args:
        draws: of the rows.
        block: codes of each row; what is drawn is [B * block], row by row.
    """

    def __init__(self, draws: Draws, block: int) -> None:
        self._draws, self._block = draws, block

    def uniform(self) -> Tensor:
        """Return the next number of each code of each row [B * block]."""
        return torch.stack([self._draws.uniform() for _ in range(self._block)], dim=1).flatten()

    def normal(self, *shape: int) -> Tensor:
        """Return the next standard normal numbers of each code of each row [B * block, *shape]."""
        return self._draws.normal(self._block, *shape).flatten(0, 1)


def check_blocks(decoding: str, compile: bool) -> None:
    """Refuse ways of decoding that are made for one code after another.

    Raises:
        RunFileError: naming what to leave out.
    """
    given = "compile" if compile else None if decoding == "steps" else f"decoding={decoding!r}"
    if given is not None:
        raise RunFileError(
            f"{given} is for paths that make one code after another, but this one predicts blocks of codes "
            "(parallel), which takes fewer runs already; leave it out"
        )


def make_in_blocks(
    language_model: nn.Module,
    path: GenerationPath,
    rows: tuple[Sequence[Tensor], Sequence[int]],
    tokens: int,
    embed: Callable[[Tensor, int], Tensor],
    pick: Callable[[Tensor, Draws], Tensor],
    draws: Draws,
) -> Tensor:
    """Return what was picked, in the order of the grid: [B, T] or [B, T, C].

    Args:
        language_model: see `core.contracts.LanguageModel`.
        path: the generation path.
        rows: input embeddings of each prompt [length, M], ending in the begin token; and which of them
            each row of the decoding continues, by index [B'].
        tokens: codes of an item (T).
        embed: all that was picked so far, and how many of the last to embed -> embeddings [B', n, M].
        pick: hidden states [B' * block, M] and draws -> ids [B * block] or latents [B * block, C].
        draws: random numbers, one stream a row.
    """
    prompts, copies = rows
    blocks, passes = path.blocks, path.blocks.passes(tokens)
    starts = path.start_embeds(1)[0].to(prompts[0].dtype)
    if not blocks.alone:
        prompts = [torch.cat((prompt, starts)) for prompt in prompts]
    length = max(len(prompt) for prompt in prompts) + tokens - passes[-1]
    stream = BlockStream(
        language_model, prompts, length + (len(starts) if blocks.alone else 0), passes[0], copies
    )
    made = _picked(stream, passes[0], pick, draws)
    for before, size in itertools.pairwise(passes):
        slots = embed(made, before)
        if size != before:
            slots = torch.cat((slots, starts.expand(len(slots), -1, -1).to(slots.dtype)), dim=1)
        stream.step(slots, size)
        made = torch.cat((made, _picked(stream, size, pick, draws)), dim=1)
    return path.to_grid(made)


def _picked(stream: BlockStream, size: int, pick: Callable[[Tensor, Draws], Tensor], draws: Draws) -> Tensor:
    """Return what is picked from the hidden states of a pass: [B, size] or [B, size, C]."""
    chosen = pick(stream.hidden.flatten(0, 1), BlockDraws(draws, size))
    return chosen.reshape(-1, size, *chosen.shape[1:])
