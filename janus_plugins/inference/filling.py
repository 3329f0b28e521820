"""Continuous filling: a row that has ended gives its seat to the next prompt, so that no seat idles.

Rows of a stream are aligned on their right: whatever a prompt's length, its last slot is the one that runs
now. A prompt that comes later is run on its own and moved beside the others, its slots ending where theirs
do. What a row answers depends on its own prompt and seed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from janus_plugins.core.contracts import Draws
from janus_plugins.inference.graph import LOOK
from janus_plugins.inference.sampling import SeededDraws
from janus_plugins.inference.stream import Stream

Watch = Callable[[int, list[int]], None]


@dataclass(frozen=True)
class Order:
    """Say what is to be answered.

    Attributes:
        begin: prompts by index, and slots to leave -> a stream that has run them.
        lengths: slots of each prompt.
        limits: most new ids of each.
        seeds: each prompt's own.
        pick: hidden states [B, M] and random numbers -> ids [B].
        embed: ids [B] -> input embeddings [B, M].
        stop: id that ends an answer.
        watch: called as answers grow, with a prompt's index and its new ids so far.
    """

    begin: Callable[[Sequence[int], int], Stream]
    lengths: Sequence[int]
    limits: Sequence[int]
    seeds: Sequence[int]
    pick: Callable[[Tensor, Draws], Tensor]
    embed: Callable[[Tensor], Tensor]
    stop: int
    watch: Watch | None = None


@dataclass
class Seat:
    """Hold who sits in a row: a prompt's index (None: nobody), and what was said so far."""

    index: int | None = None
    said: list[int] = field(default_factory=list)


def fill(order: Order, seats: int, device: torch.device) -> list[list[int]]:
    """Answer every prompt, at most `seats` at once; return each one's new ids, up to and without `stop`."""
    # Long ones first: those that follow then fit beside them.
    waiting = sorted(range(len(order.lengths)), key=lambda index: -order.lengths[index])
    first, waiting = waiting[:seats], waiting[seats:]
    answers: list[list[int]] = [[] for _ in order.lengths]
    look = 1 if device.type == "cpu" else LOOK  # on a CPU a look costs nothing
    room = max(order.limits[index] for index in first) - 1
    if waiting:
        longest = max(length + limit for length, limit in zip(order.lengths, order.limits, strict=True))
        room = 2 * longest + look - max(order.lengths[index] for index in first)
    stream = order.begin(first, room + look - 1)
    draws = SeededDraws([order.seeds[index] for index in first], device)
    taken = [Seat(index) for index in first]
    while True:
        picks = _steps(order, stream, draws, look)
        for row, seat in enumerate(taken):
            if seat.index is None:
                continue
            ended = _hear(seat, [pick[row] for pick in picks], order)
            if order.watch is not None:
                order.watch(seat.index, seat.said)
            if ended:
                answers[seat.index] = seat.said
                seat.index = None
        free = [row for row, seat in enumerate(taken) if seat.index is None]
        if len(free) == len(taken) and not waiting:
            return answers
        if stream.given + look > stream.shape[1]:  # long prompts that came later pushed the others on
            stream.forget(free)
            stream.make_room()
        last = picks[-1]
        stream.step(order.embed(torch.tensor(last, device=device)))
        if waiting and free:
            comers, waiting = waiting[: len(free)], waiting[len(free) :]
            rows = free[: len(comers)]
            stream.replace(rows, order.begin(comers, 0))
            draws.replace(rows, [order.seeds[index] for index in comers])
            for row, index in zip(rows, comers, strict=True):
                taken[row] = Seat(index)


def _steps(order: Order, stream: Stream, draws: SeededDraws, number: int) -> list[list[int]]:
    """Pick `number` times, running a slot between each; return the picks, step by step."""
    picks = [order.pick(stream.hidden, draws)]
    for _ in range(number - 1):
        stream.step(order.embed(picks[-1]))
        picks.append(order.pick(stream.hidden, draws))
    made: list[list[int]] = torch.stack(picks).tolist()
    return made


def _hear(seat: Seat, ids: Sequence[int], order: Order) -> bool:
    """Take down what a row said; answer whether it has ended."""
    assert seat.index is not None
    for one in ids:
        if one == order.stop:
            return True
        seat.said.append(one)
        if len(seat.said) == order.limits[seat.index]:
            return True
    return False
