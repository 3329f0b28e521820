"""What a data source yields: samples made of turns, turns made of text and items.

A sample knows nothing of tokens, templates or pixels: those belong to `sequence/` and to the
processors of the encoders.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from janus_plugins.core.errors import BadSample, DataError
from janus_plugins.core.suggest import quoted

Task = Literal["text", "understanding", "generation", "interleaved"]
TASKS: tuple[Task, ...] = ("text", "understanding", "generation", "interleaved")


@dataclass(frozen=True)
class Item:
    """Hold one thing that is not text.

    Attributes:
        modality: "image", "audio", ...
        value: what the encoder's processor takes: a path, bytes, a PIL image, an array.
        learn: False: shown to the model (understanding path); True: the model learns to make it
            (generation path).
    """

    modality: str
    value: object
    learn: bool = False


Part = str | Item


@dataclass(frozen=True)
class Turn:
    """Hold what one role says, in order.

    Attributes:
        role: "user" (the condition) or "assistant" (what is learnt); "system" overrides the
            template's system prompt.
        parts: text and items, in reading order.
    """

    role: Literal["system", "user", "assistant"]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Sample:
    """Hold one training or test example.

    Attributes:
        task: which column of the mix it counts for.
        turns: the conversation. Plain text is one assistant turn.
        key: a stable name ("captions[12]") for quarantine files and messages.
    """

    task: Task
    turns: tuple[Turn, ...]
    key: str


def text_sample(text: str, key: str) -> Sample:
    """Make a text-only sample: all of `text` is learnt."""
    return Sample("text", (Turn("assistant", (text,)),), key)


def question_sample(question: str, answer: str, key: str) -> Sample:
    """Make a text-only sample with a prompt: under `loss_on: answers` only `answer` is learnt."""
    return Sample("text", (Turn("user", (question,)), Turn("assistant", (answer,))), key)


def understanding_sample(modality: str, value: object, question: str, answer: str, key: str) -> Sample:
    """Make a sample that shows one item, asks and answers. An empty question gives item -> text.

    The item stands before the question, or where that marks it (`placed`).
    """
    asking = Turn("user", placed(question, (Item(modality, value),)))
    return Sample("understanding", (asking, Turn("assistant", (answer,))), key)


def generation_sample(prompt: str, modality: str, value: object, key: str) -> Sample:
    """Make a sample whose prompt is answered with one item that the model learns to make."""
    item = Item(modality, value, learn=True)
    return Sample("generation", (Turn("user", (prompt,)), Turn("assistant", (item,))), key)


def placed(text: str, items: Sequence[Item], marks: Mapping[str, str] | None = None) -> tuple[Part, ...]:
    """Put items where a text marks them with their modality: `<image>`.

    Args:
        text: what is said. Blank text between marks is left out.
        items: in order. Those of a modality that has no mark in the text stand before it.
        marks: what else marks a place, by modality.

    Raises:
        BadSample: a modality has marks, but not as many as items.
    """
    names = dict.fromkeys(item.modality for item in items)
    spelt = {f"<{name}>": name for name in names}
    spelt |= {mark: name for name, mark in (marks or {}).items() if name in names}
    pieces = re.split(f"({'|'.join(map(re.escape, spelt))})", text) if spelt else [text]
    number = Counter(spelt[mark] for mark in pieces[1::2])
    waiting = {name: [item for item in items if item.modality == name] for name in names}
    for name, marked in number.items():
        if marked != len(waiting[name]):
            there = len(waiting[name])
            raise BadSample(f"{quoted(text)} marks {marked} places with <{name}> for {there} items")
    parts: list[Part] = [item for item in items if item.modality not in number]
    for place, piece in enumerate(pieces):
        if place % 2:
            parts.append(waiting[spelt[piece]].pop(0))
        elif piece.strip() or (piece and not number):
            parts.append(piece)
    return tuple(parts)


def marked(parts: Sequence[Part]) -> tuple[str, list[Item]]:
    """Return text and items of parts, with a mark in the text where they do not all stand before it.

    Marks also say an order that is not by modality; see `placed`.
    """
    items = [part for part in parts if isinstance(part, Item)]
    usual = sorted(items, key=lambda item: item.modality)
    if list(parts[: len(items)]) == usual:
        return "".join(map(str, parts[len(items) :])), items
    return "".join(f"<{part.modality}>" if isinstance(part, Item) else part for part in parts), items


def asked(sample: Sample) -> tuple[str, list[Item]]:
    """Return the text of the user's turn, and the items that it shows.

    Items that do not all stand before the text, or not by modality, are marked in it; see `placed`.

    Raises:
        DataError: it is a conversation of several questions, which cannot be asked as one.
    """
    roles = [turn.role for turn in sample.turns if turn.role != "system"]
    if roles not in (["user", "assistant"], ["user"], ["assistant"]):
        raise DataError(
            f"{sample.key}: has {len(roles)} turns ({', '.join(roles)}); a task asks one question and reads "
            "one answer: make a row of each"
        )
    return marked([part for turn in sample.turns if turn.role == "user" for part in turn.parts])


def answered(sample: Sample) -> list[Part]:
    """Return the parts of the assistant turns, in order."""
    return [part for turn in sample.turns if turn.role == "assistant" for part in turn.parts]


def generated(sample: Sample) -> tuple[str, Item]:
    """Return the prompt of a sample that generates one item, and the item.

    Raises:
        DataError: it generates none, or several, or its prompt shows items.
    """
    items = [part for turn in sample.turns for part in turn.parts if isinstance(part, Item) and part.learn]
    if len(items) != 1:
        raise DataError(f"{sample.key}: generates {len(items)} items; the task needs samples with one")
    prompt, shown = asked(sample)
    if shown:
        raise DataError(f"{sample.key}: its prompt shows items, and this task gives the model words alone")
    return prompt, items[0]


def item_columns(items: Sequence[Sequence[Item]]) -> dict[str, list[list[object]]]:
    """Turn items a question into, by modality, a list of values a question; empty where there is no item."""
    names = sorted({item.modality for row in items for item in row})
    return {name: [[item.value for item in row if item.modality == name] for row in items] for name in names}
