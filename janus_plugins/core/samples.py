"""What a data source yields: samples made of turns, turns made of text and items.

A sample knows nothing of tokens, templates or pixels: those belong to `sequence/` and to the
processors of the encoders.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
    """Make a sample that shows one item, asks and answers. An empty question gives item -> text."""
    parts: tuple[Part, ...] = (Item(modality, value), question) if question else (Item(modality, value),)
    return Sample("understanding", (Turn("user", parts), Turn("assistant", (answer,))), key)


def generation_sample(prompt: str, modality: str, value: object, key: str) -> Sample:
    """Make a sample whose prompt is answered with one item that the model learns to make."""
    item = Item(modality, value, learn=True)
    return Sample("generation", (Turn("user", (prompt,)), Turn("assistant", (item,))), key)
