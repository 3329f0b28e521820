"""The digits as samples: pictures made of scikit-learn's arrays, a fixed stratified split."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from janus_plugins.core.facts import SourceFacts
from janus_plugins.core.samples import Sample, generation_sample, understanding_sample
from janus_plugins.sources.digits.spec import WORDS, DigitsConfig

BRIGHTEST = 16.0
"""Largest value in `load_digits`: 8x8 counts of 4x4 ink blocks."""


def build(config: DigitsConfig, facts: SourceFacts) -> Digits:
    """Open one side of the split."""
    from sklearn.datasets import load_digits

    scans, labels = load_digits(return_X_y=True)
    return Digits(config, scans.reshape(-1, 8, 8), labels)


class Digits:
    """Be a `core.contracts.Source` of digits.

    Args:
        config: the options.
        scans: ink of every scan [N, 8, 8], 0 to 16.
        labels: its class [N].
    """

    def __init__(self, config: DigitsConfig, scans: NDArray[np.float64], labels: NDArray[np.int64]) -> None:
        self._config = config
        self._scans, self._labels = scans, labels
        self._prompts = config.prompts if config.ask == "generation" else ("",)
        self._rows = split_rows(labels, config.test_percent, config.split_seed)[config.split]

    def __len__(self) -> int:
        """Return the number of samples: each scan once for every wording of its prompt."""
        return len(self._rows) * len(self._prompts)

    def __getitem__(self, index: int) -> Sample:
        """Return one scan with its question or its prompt."""
        if not 0 <= index < len(self):
            raise IndexError(f"digits has {len(self)} samples, not {index + 1}")
        row = int(self._rows[index % len(self._rows)])
        config, key = self._config, f"digits[{row}]"
        word, image = WORDS[self._labels[row]], picture(self._scans[row], config.size)
        if config.ask == "understanding":
            return understanding_sample(config.modality, image, config.question, word, key)
        prompt = self._prompts[index // len(self._rows)].replace("{word}", word)
        return generation_sample(prompt, config.modality, image, key)

    def texts(self) -> Iterator[str]:
        """Yield the questions, answers and prompts, each word as often as another."""
        for word in WORDS:
            if self._config.ask == "understanding":
                yield from (self._config.question, word)
            else:
                yield from (prompt.replace("{word}", word) for prompt in self._prompts)


def picture(scan: NDArray[np.float64], size: int) -> Image.Image:
    """Return one scan [8, 8] as a picture of `size` pixels a side."""
    grey = np.round(scan * (255 / BRIGHTEST)).astype(np.uint8)
    return Image.fromarray(grey).resize((size, size), Image.Resampling.BICUBIC).convert("RGB")


def split_rows(labels: NDArray[np.int64], test_percent: int, seed: int) -> dict[str, NDArray[np.int64]]:
    """Split rows so that every class is held out in the same proportion.

    Returns:
        The sorted rows of "train" and of "test", together every row once.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        held_out[rows[: round(len(rows) * test_percent / 100)]] = True
    return {"train": np.flatnonzero(~held_out), "test": np.flatnonzero(held_out)}
