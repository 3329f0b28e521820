"""Prompts of shuffled numbers in words, answered by the same numbers in order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import permutations

from janus_plugins.core.facts import SourceFacts
from janus_plugins.core.samples import Sample, question_sample
from janus_plugins.sources.sorting.spec import SortingConfig

WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    *("nineteen", "twenty"),
)


def build(config: SortingConfig, facts: SourceFacts) -> Sorting:
    """Open one side of the split."""
    return Sorting(config)


class Sorting:
    """Be a `core.contracts.Source` of sorting tasks: every ordering of every choice of numbers, once.

    Args:
        config: the options.
    """

    def __init__(self, config: SortingConfig) -> None:
        self._config = config
        fewest, most = config.count
        self._problems = [
            problem
            for count in range(fewest, most + 1)
            for problem in permutations(range(config.numbers), count)
            if self._held_out(problem) == (config.split == "test")
        ]

    def __len__(self) -> int:
        """Return the number of prompts on this side of the split."""
        return len(self._problems)

    def __getitem__(self, index: int) -> Sample:
        """Return one prompt with its answer."""
        question, answer = self._texts(self._problems[index])
        return question_sample(question, answer, f"sorting[{index}]")

    def texts(self) -> Iterator[str]:
        """Yield every prompt and its answer."""
        for problem in self._problems:
            yield from self._texts(problem)

    def _texts(self, problem: tuple[int, ...]) -> tuple[str, str]:
        shuffled, ordered = (" ".join(WORDS[n] for n in numbers) for numbers in (problem, sorted(problem)))
        return f"{self._config.prompt} {shuffled}", ordered

    def _held_out(self, problem: tuple[int, ...]) -> bool:
        """Decide by a hash of the numbers, so that a prompt's side depends on nothing else."""
        text = f"{self._config.split_seed}:{' '.join(map(str, problem))}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") % 100 < self._config.test_percent
