"""Counting as samples: answers of words and pictures in turn, and the picture that follows a picture."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from janus_plugins.core.facts import SourceFacts
from janus_plugins.core.samples import Item, Part, Sample, Turn
from janus_plugins.sources.digits.counting_spec import CountingConfig
from janus_plugins.sources.digits.source import picture, split_rows
from janus_plugins.sources.digits.spec import WORDS


def build(config: CountingConfig, facts: SourceFacts) -> Counting:
    """Open one side of the split."""
    from sklearn.datasets import load_digits

    scans, labels = load_digits(return_X_y=True)
    return Counting(config, scans.reshape(-1, 8, 8), labels)


class Counting:
    """Be a `core.contracts.Source` of counting. Each scan comes first in a count of every length.

    Which scans follow is a function of the sample's index; all are from the same side of the split.

    Args:
        config: the options.
        scans: ink of every scan [N, 8, 8], 0 to 16.
        labels: its class [N].
    """

    def __init__(self, config: CountingConfig, scans: NDArray[np.float64], labels: NDArray[np.int64]) -> None:
        self._config = config
        self._scans, self._labels = scans, labels
        rows = split_rows(labels, config.test_percent, config.split_seed)[config.split]
        self._of_class = [rows[labels[rows] == label] for label in range(len(WORDS))]
        self._tasks = [(int(row), count) for row in rows for count in self._counts(int(labels[row]))]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._tasks)

    def __getitem__(self, index: int) -> Sample:
        """Return one count."""
        if not 0 <= index < len(self):
            raise IndexError(f"counting has {len(self)} samples, not {index + 1}")
        row, count = self._tasks[index]
        first = int(self._labels[row])
        prompt, labels = self._prompt(first, count), self._said(first, count)
        key = f"counting[{self._config.ask}, {row}, {count}]"
        rng = np.random.Generator(np.random.PCG64([self._config.split_seed, index]))
        rows = [int(rng.choice(self._of_class[label])) for label in labels]
        shown: tuple[Part, ...] = ()
        if self._config.ask == "words":
            rows[0] = row
        else:
            shown = (self._item(row),)
        made = [self._item(chosen, learn=True) for chosen in rows]
        if self._config.ask == "next":
            return Sample("generation", (Turn("user", (*shown, prompt)), Turn("assistant", tuple(made))), key)
        answer = [part for label, item in zip(labels, made, strict=True) for part in (WORDS[label], item)]
        return Sample("interleaved", (Turn("user", (*shown, prompt)), Turn("assistant", tuple(answer))), key)

    def texts(self) -> Iterator[str]:
        """Yield every prompt once, and the answers' words."""
        classes = range(len(WORDS))
        yield from dict.fromkeys(self._prompt(one, count) for one in classes for count in self._counts(one))
        yield from WORDS

    def _counts(self, first: int) -> range:
        """Return how many pictures an answer may hold: counting ends at nine, but nine has a next digit."""
        if self._config.ask == "next":
            return range(1, 2)
        left = len(WORDS) - first - (self._config.ask == "picture")
        return range(1, min(self._config.most, left) + 1)

    def _said(self, first: int, count: int) -> list[int]:
        start = first if self._config.ask == "words" else first + 1
        return [(start + step) % len(WORDS) for step in range(count)]

    def _prompt(self, first: int, count: int) -> str:
        text: str = getattr(self._config, self._config.ask)
        last = self._said(first, count)[-1]
        return text.replace("{first}", WORDS[first]).replace("{last}", WORDS[last])

    def _item(self, row: int, learn: bool = False) -> Item:
        return Item(self._config.modality, picture(self._scans[row], self._config.size), learn)
