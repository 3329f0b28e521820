"""A row of a dataset becomes a sample. Nothing here needs the `datasets` library."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from janus_plugins.core.errors import BadSample
from janus_plugins.core.files import NamedBytes
from janus_plugins.core.samples import (
    Item,
    Part,
    Sample,
    Turn,
    generation_sample,
    placed,
    question_sample,
    text_sample,
)
from janus_plugins.sources.hf_dataset.spec import COLUMN, TEXT_KEYS, HfDatasetConfig

LINE = "text"
"""The column of a dataset whose rows are lines of a file."""

ROLES: Mapping[str, Any] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
"""How conversation data names its speakers (ShareGPT's and OpenAI's spellings)."""

_JSON = json.JSONDecoder(strict=False)
"""Leaves control characters in strings as they are."""

_END = 4096
"""How many bytes of each end of a file tell it from another."""

_SHOWN = 60
"""How many characters of a broken line an error shows."""


@dataclass(frozen=True)
class RowReader:
    """Turn rows into samples.

    Attributes:
        config: the source's options.
        root: folder that relative item paths start from.
        classes: names of the classes of columns that hold class numbers.
        lines: whether a row is a line of JSON still to be parsed.
    """

    config: HfDatasetConfig
    root: Path = field(default_factory=Path)
    classes: Mapping[str, list[str]] = field(default_factory=dict)
    lines: bool = False

    def sample(self, row: Mapping[str, Any], key: str) -> Sample:
        """Return the sample that a row makes.

        Raises:
            BadSample: a column is missing, empty or of the wrong type, or a line is no JSON object.
        """
        row = parsed(row, key) if self.lines else row
        columns, task = self.config.columns, self.config.task
        if "conversations" in columns:
            return Sample("text" if task == "text" else "understanding", self._conversation(row), key)
        if task == "interleaved":
            marked = self._marked(self._text(row, "text"), self._items(row), key)
            return Sample("interleaved", (Turn("assistant", marked),), key)
        if task == "generation":
            items = self._items(row, learn=True)
            if len(items) != 1:
                raise BadSample(f"{key} has {len(items)} items to make; a prompt is answered with one")
            return generation_sample(self._text(row, "prompt"), items[0].modality, items[0].value, key)
        if task == "understanding":
            question = self._text(row, "question") if "question" in columns else ""
            answer = Turn("assistant", (self._text(row, "answer"),))
            return Sample("understanding", (Turn("user", placed(question, self._items(row))), answer), key)
        if "text" in columns:
            return text_sample(self._text(row, "text"), key)
        return question_sample(self._text(row, "question"), self._text(row, "answer"), key)

    def texts(self, row: Mapping[str, Any]) -> Iterator[str]:
        """Yield the texts of a row.

        Raises:
            BadSample: a column is missing, empty or of the wrong type, or a line is no JSON object.
        """
        row = parsed(row) if self.lines else row
        for name in TEXT_KEYS:
            if name in self.config.columns:
                yield self._text(row, name)
        if "conversations" in self.config.columns:
            for _, text in self._messages(row):
                yield text.replace(self._mark, " ")

    @property
    def _mark(self) -> str:
        return f"<{self.config.modality}>"

    @property
    def _item_column(self) -> str:
        reference = COLUMN.fullmatch(self.config.columns[self.config.modality])
        assert reference, "the options were checked"
        return reference[1]

    def _text(self, row: Mapping[str, Any], name: str) -> str:
        text = COLUMN.sub(lambda found: self._filled(row, found[1]), self.config.columns[name])
        if not text.strip():
            raise BadSample(f"{name} is empty")
        return text

    def _filled(self, row: Mapping[str, Any], column: str) -> str:
        value = _column(row, column)
        if column in self.classes and isinstance(value, int):
            names = self.classes[column]
            if not 0 <= value < len(names):
                raise BadSample(f"column {column!r} holds class {value}, but there are {len(names)}")
            return names[value]
        if isinstance(value, float) and not math.isfinite(value):
            raise BadSample(f"column {column!r} holds {value}, not text")
        if isinstance(value, bool) and self.lines:
            return json.dumps(value)
        if isinstance(value, str | int | float):
            return str(value)
        raise BadSample(f"column {column!r} holds {type(value).__name__}, not text")

    def _items(self, row: Mapping[str, Any], learn: bool = False) -> list[Item]:
        value = _column(row, self._item_column)
        if value == [] and isinstance(value, list):
            raise BadSample(f"column {self._item_column!r} is empty")
        many = value if isinstance(value, list) and value and _is_reference(value[0]) else [value]
        return [Item(self.config.modality, self._opened(one), learn) for one in many]

    def _opened(self, value: Any) -> Any:
        """Return bytes, an absolute path, or the value as it is; reading it is the processor's part."""
        if (
            isinstance(value, Mapping)
            and value.get("array") is None
            and ("bytes" in value or "path" in value)
        ):
            data, path = value.get("bytes"), value.get("path")
            value = NamedBytes(data, path) if data and path else data or path
        if value is None:
            raise BadSample(f"the {self.config.modality} is empty")
        if isinstance(value, str):
            return str(self.root / value)
        if isinstance(value, Mapping):
            return {key: self._opened(part) if self._is_file(part) else part for key, part in value.items()}
        return value

    def _is_file(self, value: Any) -> bool:
        """Answer whether a part of an item names a file, as a touch's picture and its background do."""
        if isinstance(value, Mapping):
            return bool(value.get("bytes") or value.get("path"))
        # Not `Path.is_file`: a text may be longer than any name, which raises.
        return isinstance(value, str) and os.path.isfile(self.root / value)

    def _messages(self, row: Mapping[str, Any]) -> Iterator[tuple[Any, str]]:
        reference = COLUMN.fullmatch(self.config.columns["conversations"])
        assert reference, "the options were checked"
        messages = _column(row, reference[1])
        if not isinstance(messages, list) or not messages:
            raise BadSample(f"column {reference[1]!r} holds no list of messages")
        for message in messages:
            fields = message if isinstance(message, Mapping) else {}
            role = fields.get("from", fields.get("role"))
            text = fields.get("value", fields.get("content"))
            if not isinstance(role, str) or role not in ROLES or not isinstance(text, str):
                raise BadSample(f"a message needs a text and one of the roles {sorted(ROLES)}: {message}")
            yield ROLES[role], text

    def _conversation(self, row: Mapping[str, Any]) -> tuple[Turn, ...]:
        messages = list(self._messages(row))
        items = self._items(row) if self._shows(row) else []
        if items and not any(self._mark in text for _, text in messages):
            first = next((i for i, (role, _) in enumerate(messages) if role == "user"), 0)
            messages[first] = (messages[first][0], self._mark * len(items) + messages[first][1])
        turns, left = [], list(items)
        for role, text in messages:
            number = text.count(self._mark) if items else 0
            turns.append(Turn(role, self._marked(text, left[:number], "the conversation")))
            left = left[number:]
        if left:
            raise BadSample(f"{len(left)} items have no {self._mark} in the conversation")
        return tuple(turns)

    def _shows(self, row: Mapping[str, Any]) -> bool:
        """Answer whether a conversation is about items; in LLaVA's mixtures some rows are text alone."""
        return self.config.modality in self.config.columns and row.get(self._item_column) not in (None, [])

    def _marked(self, text: str, items: list[Item], where: str) -> tuple[Part, ...]:
        """Put items where the text marks them."""
        if not items and self.config.task == "text":
            return (text,)
        number = text.count(self._mark)
        if number != len(items):
            raise BadSample(f"{where} marks {number} places with {self._mark} for {len(items)} items")
        return tuple(part for part in placed(text, items) if isinstance(part, Item) or part.strip())


def parsed(row: Mapping[str, Any], key: str = "the line") -> dict[str, Any]:
    """Return the JSON object in a row that is a line.

    Raises:
        BadSample: the line holds something else.
    """
    line = row[LINE]
    try:
        value = _JSON.decode(line)
        if "\\ud" in line.lower():
            json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise BadSample(f"{key} is no JSON object: {error}, in {_start(line)}") from error
    if not isinstance(value, dict):
        raise BadSample(f"{key} is no JSON object, but {_start(line)}")
    return value


def row_digest(row: Any) -> str:
    """Return what tells a row from another: its values, of bytes how many there are and both ends.

    Of a file its name counts, not the folder: data may be moved.
    """
    digest = hashlib.blake2b(digest_size=12)
    _take(digest, row)
    return digest.hexdigest()


def _take(digest: Any, value: Any) -> None:
    if isinstance(value, Mapping):
        for key in sorted(value):
            digest.update(f"{key}:".encode())
            moves = key == "path" and "bytes" in value and isinstance(value[key], str)
            _take(digest, value[key].replace("\\", "/").rpartition("/")[2] if moves else value[key])
    elif isinstance(value, list | tuple):
        digest.update(f"{len(value)} values".encode())
        for one in value:
            _take(digest, one)
    elif isinstance(value, bytes):
        digest.update(f"{len(value)} bytes".encode() + value[:_END] + value[-_END:])
    elif isinstance(value, str | int | float | date | time | timedelta | Decimal | None):
        digest.update(f"{type(value).__name__} {value}".encode(errors="surrogatepass"))
    else:
        digest.update(type(value).__name__.encode())


def _start(line: str) -> str:
    return repr(line if len(line) <= _SHOWN else f"{line[:_SHOWN]}...")


def _column(row: Mapping[str, Any], name: str) -> Any:
    if name not in row:
        raise BadSample(f"the row has no column {name!r}; it has {sorted(row)}")
    if row[name] is None:
        raise BadSample(f"column {name!r} is empty")
    return row[name]


def _is_reference(value: Any) -> bool:
    return isinstance(value, str | bytes | Mapping)
