"""Batches of a training step are counted: what moves by itself in training moves once a step."""

from __future__ import annotations


class CountsBatches:
    """Tell a module which of the batches that it sees ends a step; see `contracts.GenerationEncoder`.

    A base beside `torch.nn.Module`. The count is no part of the state: a checkpoint lies between steps.
    """

    _batches = 1
    _seen = 0

    def set_accumulation(self, number: int) -> None:
        """Say how many batches make a step."""
        self._batches, self._seen = number, 0

    def ends_step(self) -> bool:
        """Count a batch, and answer whether it is the last of its step."""
        self._seen = (self._seen + 1) % self._batches
        return self._seen == 0
