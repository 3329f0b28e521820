"""The static key-value cache, and attention over its filled part."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from janus_plugins.core.contracts import Cached
from janus_plugins.core.devices import without_plans
from janus_plugins.core.errors import RunFileError


class KeyValueCache:
    """Hold keys and values of `batch` rows of at most `length` slots, one pair of tensors a layer.

    A layer's tensors [B, G, length, D] are made at its first write, in the dtype it computes in. On a device
    where a kernel is worth saving they lie beside one another, [B, 2 G, length, D], if keys are as wide as
    values: a slot is then written at once.

    Attributes:
        step: the short way of a few slots at a time (`step.LlamaStep`), False where there is none, None
            until that is known.
    """

    step: Any = None

    def __init__(self, batch: int, length: int) -> None:
        self.batch = batch
        self.length = length
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._both: dict[int, Tensor] = {}

    def both(self, layer: int) -> Tensor | None:
        """Return a layer's keys, then values [B, 2 G, length, D], where they lie beside one another."""
        return self._both.get(layer)

    def select(self, rows: Tensor) -> KeyValueCache:
        """Return a cache of copies of the named rows [B'] (int64), in that order, with repeats."""
        chosen = KeyValueCache(len(rows), self.length)
        for layer, (keys, values) in self.layers.items():
            if layer in self._both:
                chosen._keep(layer, self._both[layer][rows])
            else:
                chosen.layers[layer] = (keys[rows], values[rows])
        return chosen

    def longer(self, length: int) -> KeyValueCache:
        """Return a cache of so many slots, those of this one copied."""
        grown = KeyValueCache(self.batch, length)
        for layer, (keys, values) in self.layers.items():
            grown._make(layer, keys, values)
        grown.copy_(self)
        return grown

    def _keep(self, layer: int, both: Tensor) -> None:
        self._both[layer], self.layers[layer] = both, _halves(both)

    def copy_(self, other: KeyValueCache) -> None:
        """Take over the keys and values of a cache of as many rows, as many of its slots as there are.

        Further slots are zeros then: what is not seen may be multiplied by zero, and a NaN would stay one.
        """
        slots = min(self.length, other.length)
        for layer, pair in other.layers.items():
            for mine, theirs in zip(self.layers[layer], pair, strict=True):
                mine[:, :, :slots].copy_(theirs[:, :, :slots])
                mine[:, :, slots:].zero_()

    def put(self, rows: Tensor, other: KeyValueCache, start: int, length: int) -> None:
        """Write the first `length` slots of another cache to the named rows [b], from slot `start` on."""
        for layer, pair in other.layers.items():
            for mine, theirs in zip(self.layers[layer], pair, strict=True):
                mine[rows, :, start : start + length] = theirs[:, :, :length]

    def shift(self, by: int) -> None:
        """Move all slots by so many, to the right where it is positive; what is pushed out is lost."""
        for pair in self.layers.values():
            for each in pair:
                each.copy_(each.roll(by, 2))

    def update(
        self, layer: int, key: Tensor, value: Tensor, start: int, slot: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Write key, value [B, G, S, D] from slot `start` on; return all so far [B, G, start + S, D].

        With `slot` [1] the one slot is written there, wherever `start` lies.
        """
        stop = start + key.shape[2]
        if layer not in self.layers:
            self._make(layer, key, value)
        if slot is not None and layer in self._both:
            both = self._both[layer]  # alone: a compiler that met its views, too, would copy the whole of it
            return _halves(both.index_copy_(2, slot, torch.cat((key, value), 1))[:, :, :stop])
        keys, values = self.layers[layer]
        if slot is None:
            keys[:, :, start:stop] = key
            values[:, :, start:stop] = value
        else:
            keys.index_copy_(2, slot, key)
            values.index_copy_(2, slot, value)
        return keys[:, :, :stop], values[:, :, :stop]

    def _make(self, layer: int, key: Tensor, value: Tensor) -> None:
        shapes = [(self.batch, each.shape[1], self.length, each.shape[3]) for each in (key, value)]
        if shapes[0] == shapes[1] and key.dtype == value.dtype and key.device.type != "cpu":
            batch, groups, length, width = shapes[0]
            self._keep(layer, key.new_zeros(batch, 2 * groups, length, width))
        else:
            self.layers[layer] = (key.new_zeros(shapes[0]), value.new_zeros(shapes[1]))


def _halves(both: Tensor) -> tuple[Tensor, Tensor]:
    groups = both.shape[1] // 2
    return both[:, :groups], both[:, groups:]


def one_by_one(plan: Cached) -> bool:
    """Answer whether each slot follows the one before it, and sees no other behind it."""
    return plan.block == 1 and (plan.visible is None or plan.visible.dim() != 3)


class CachedAttention:
    """Attend from S new slots to everything before them in the cache, and among themselves as planned.

    Args:
        plan: what is seen.
        cache: the keys and values.
        shape: rows and slots.
        device: of the slots.
        window: how many each slot sees at most, the last of those that the plan shows it.
    """

    by_layer = True

    def __init__(
        self,
        plan: Cached,
        cache: KeyValueCache,
        shape: tuple[int, int],
        device: torch.device,
        window: int | None = None,
    ) -> None:
        batch, slots = shape
        self.reach = plan.start + slots
        if self.reach > cache.length or batch != cache.batch:
            raise RunFileError(
                f"a cache of {cache.batch} rows of {cache.length} slots cannot take {batch} rows up to slot "
                f"{self.reach}; make a larger one"
            )
        self.start = plan.start
        self.slot = plan.slot
        self.padded = plan.padded
        self.cache = cache
        self.causal = (
            plan.visible is None and plan.start == 0 and slots > 1 and plan.block == 1 and not window
        )
        self.mask = None if self.causal else _mask(plan, slots, device)
        if window:
            self.mask = _last(window, self.mask, self.reach, device)
        self._given = (plan, cache, shape, device)
        self._asked: set[int] = set()
        self._within: dict[int, CachedAttention] = {}

    def within(self, window: int) -> CachedAttention:
        """Return the same for a layer whose slots see the last `window` alone of those before them.

        Raises:
            RunFileError: these slots see others, too, so that none is the last.
        """
        plan = self._given[0]
        if plan.slot is None and self.reach <= window:
            return self
        if not one_by_one(plan):
            raise RunFileError(
                f"this language model looks back {window} positions only, but {self.reach} slots are decoded "
                "here in another order than one by one (parallel, or decoding: zigzag); leave that out, or "
                "choose another language model"
            )
        if window not in self._within:
            self._within[window] = CachedAttention(*self._given, window)
        return self._within[window]

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, dropout: float
    ) -> Tensor:
        """Write the new keys and values, and attend over the filled part.

        Raises:
            RunFileError: the layer asks a second time, and would write over what it wrote at first.
        """
        if layer in self._asked:
            raise RunFileError(
                f"layer {layer} of this language model attends twice, but a cache keeps one pair of keys "
                "and values a layer; choose another language model"
            )
        if not torch.compiler.is_compiling():
            self._asked.add(layer)
        keys, values = self.cache.update(layer, key, value, self.start, self.slot)
        with without_plans(query.device):
            output = scaled_dot_product_attention(
                query,
                keys,
                values,
                attn_mask=self.mask,
                is_causal=self.causal,
                scale=scale,
                dropout_p=dropout,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        return output.transpose(1, 2)


def _last(window: int, mask: Tensor | None, reach: int, device: torch.device) -> Tensor:
    """Return a mask [..., reach] of the last `window` slots that a mask shows (None: all that there are).

    They are counted: between two slots of a row there may be padding.
    """
    seen = torch.ones(1, 1, 1, reach, dtype=torch.bool, device=device) if mask is None else mask
    return seen & (seen.flip(-1).cumsum(-1).flip(-1) <= window)


def _mask(plan: Cached, slots: int, device: torch.device) -> Tensor | None:
    """Return which slots are seen, bool [B or 1, 1, S, start + S], or None where that is all."""
    if plan.visible is None and slots == plan.block:
        return None
    if plan.visible is not None and plan.visible.dim() == 3:
        return plan.visible[:, None]
    if plan.slot is not None and plan.visible is not None:
        return plan.visible[:, None, None, :]
    stop = plan.start + slots
    keys = torch.arange(stop, device=device)
    queries = torch.arange(plan.start, stop, device=device)[:, None]
    mask = (keys <= queries.where(queries < stop - plan.block, stop - 1))[None, None]
    if plan.visible is not None:
        # A slot always sees itself: on left padding it would else see nothing, and give NaN.
        mask = mask & plan.visible[:, None, None, :] | (keys == queries)
    return mask
