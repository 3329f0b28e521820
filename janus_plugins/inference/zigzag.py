"""Rows of a picture decoded side by side: a row begins once the one above it is a window ahead.

A code depends most on those near it in the picture, so that the far end of the row above may be made at the
same time. Results differ from one-by-one decoding: the first code of a row that begins early is told the
newest code above in the place of the last. Source: ZipAR, arXiv 2412.04062, for models trained code by code.

What runs when is planned here from the grid alone; places are counted in raster order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from janus_plugins.inference.stream import Stream


@dataclass(frozen=True)
class Slot:
    """Say what one slot of a run holds.

    Attributes:
        code: place of the code that is embedded.
        place: whose position it takes; another than `code` where it stands in for one not yet made.
        answers: place of the code that its hidden state decides, or None.
    """

    code: int
    place: int
    answers: int | None


def plan_runs(height: int, width: int, window: int) -> list[list[Slot]]:
    """Return the slots of every run after the prompt's, which decides the code at place 0.

    Args:
        height: rows of the grid.
        width: codes of a row.
        window: codes by which a row stays behind the one above it; `width` is one by one.
    """
    made = [1] + [0] * (height - 1)
    entered: set[int] = set()
    runs = []
    while made[-1] < width:
        before, run = list(made), []
        for row in range(height):
            ready = row == 0 or before[row - 1] >= min(width, before[row] + window)
            if before[row] < width and ready:
                place = row * width + before[row] - 1
                code = (
                    place
                    if before[row] or before[row - 1] == width
                    else (row - 1) * width + before[row - 1] - 1
                )
                run.append(Slot(code, place, place + 1))
                made[row] += 1
        answered = {slot.place for slot in run if slot.code == slot.place}
        late = [
            Slot(last, last, None)
            for row in range(height - 1)
            if before[row] == width
            and before[row + 1]
            and (last := row * width + width - 1) not in entered | answered
        ]
        entered |= answered | {slot.place for slot in late}
        runs.append(sorted([*run, *late], key=lambda slot: slot.place))
    return runs


def sight(runs: list[list[Slot]]) -> list[Tensor]:
    """Return what each slot of each run sees of all slots so far: [S, slots so far] (bool).

    A slot sees itself and what lies before it in the picture; a stand-in is seen until the code that it
    stands for has come.
    """
    before: list[Slot] = []
    answers = []
    for run in runs:
        slots = before + run
        come = {slot.place for slot in slots if slot.code == slot.place}
        useful = [slot.code == slot.place or slot.place not in come for slot in slots]
        answers.append(
            torch.tensor(
                [
                    [
                        other is slot or (other.place < slot.place and keep)
                        for other, keep in zip(slots, useful, strict=True)
                    ]
                    for slot in run
                ],
                device="cpu",
            )
        )
        before = slots
    return answers


def zigzag_codes(
    stream: Stream,
    pick: Callable[[Tensor], Tensor],
    embed: Callable[[Tensor], Tensor],
    grid: tuple[int, int],
    window: int,
) -> Tensor:
    """Return the codes of every item [B, T].

    Args:
        stream: rows whose given slots have run, with room for `height - 1` slots more than codes.
        pick: hidden states [B', M] -> codes [B].
        embed: codes [B, n] -> input embeddings [B', n, M].
        grid: height and width.
        window: see `plan_runs`.
    """
    first = pick(stream.hidden)
    made = first.new_zeros(len(first), grid[0] * grid[1])
    made[:, 0] = first
    runs = plan_runs(*grid, window)
    for run, seen in zip(runs, sight(runs), strict=True):
        codes = torch.tensor([slot.code for slot in run], device=made.device)
        places = torch.tensor([slot.place for slot in run], device=made.device)
        hidden = stream.place(embed(made[:, codes]), places, seen.to(made.device))
        for index, slot in enumerate(run):
            if slot.answers is not None:
                made[:, slot.answers] = pick(hidden[:, index])
    return made
