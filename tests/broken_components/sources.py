"""Sources that each break one rule, and two that break none."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

from janus_plugins import CONTRACT_VERSION, ComponentConfig, ComponentSpec, Kind, Sample, SourceFacts, Turn
from janus_plugins.core.samples import question_sample, understanding_sample

WORDS = ("red", "green", "blue", "black")


class SourceConfig(ComponentConfig):
    def facts(self) -> SourceFacts:
        return SourceFacts(frozenset({"text"}))


class Words:
    """Keeps its contract."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Sample:
        return question_sample(f"word {index}", WORDS[index % 4], f"words[{index}]")

    def texts(self) -> Iterator[str]:
        yield from WORDS
        yield from (f"word {index}" for index in range(12))


class Undeclared(Words):
    def __getitem__(self, index: int) -> Sample:
        return understanding_sample("image", b"", "which", WORDS[index % 4], f"words[{index}]")


class Unasked(Words):
    def __getitem__(self, index: int) -> Sample:
        return Sample("text", (Turn("user", (WORDS[index % 4],)),), f"words[{index}]")


class Nameless(Words):
    def __getitem__(self, index: int) -> Sample:
        return question_sample("word", WORDS[index % 4], "words")


class Moody(Words):
    def __getitem__(self, index: int) -> Sample:
        return question_sample("word", random.choice(WORDS), f"words[{index}]")


class Silent(Words):
    def texts(self) -> Iterator[str]:
        yield "red green"


class Empty(Words):
    def __len__(self) -> int:
        return 0


class Endless(Words):
    def __getitem__(self, index: int) -> Sample:
        return understanding_sample("image", b"", "which " * 500, WORDS[index % 4], f"words[{index}]")


class Stream:
    """Keeps its contract, read in order."""

    def rows(self, state: Mapping[str, Any] | None) -> Iterator[tuple[Any, Mapping[str, Any]]]:
        index = self.first(state)
        while True:
            yield index, {"next": index + 1}
            index += 1

    def first(self, state: Mapping[str, Any] | None) -> int:
        return state["next"] if state else 0

    def sample(self, row: Any, index: int) -> Sample:
        return question_sample(f"word {row}", WORDS[row % 4], f"words[{row}]")


class Restarting(Stream):
    def first(self, state: Mapping[str, Any] | None) -> int:
        return 0


class Wordy(Stream):
    def rows(self, state: Mapping[str, Any] | None) -> Iterator[tuple[Any, Mapping[str, Any]]]:
        for row, after in super().rows(state):
            yield row, {**after, "handle": object()}


def source_spec(name: str) -> ComponentSpec:
    """A spec of the source class `name` of this module."""
    return ComponentSpec(
        kind=Kind.SOURCE,
        name="tried",
        config=SourceConfig,
        factory=f"{__name__}:build_{name}",
        contract=CONTRACT_VERSION,
    )


def __getattr__(name: str) -> Any:
    """Let a spec name a class as its factory: `build_Words` builds `Words()`."""
    made = globals().get(name.removeprefix("build_"))
    if made is None:
        raise AttributeError(name)
    return lambda config, facts: made()
