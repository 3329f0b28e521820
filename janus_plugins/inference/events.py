"""What is reported while a model answers: pieces of text, items begun, items made.

A piece is final: pieces of one text put together are that text. What later tokens may still change is
held back: bytes of an unfinished character, and signs and spaces at the end, which a tokenizer may join
to the next word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from janus_plugins.inference.artefacts import Generated


@dataclass(frozen=True)
class TextPiece:
    """Report more text of an answer.

    Attributes:
        row: which question or prompt of the call it answers.
        text: at least one whole character.
    """

    row: int
    text: str


@dataclass(frozen=True)
class ItemStarted:
    """Report that an answer's text has switched to an item.

    Attributes:
        row: which prompt of the call.
        modality: of the item.
        index: which item of the answer it is.
    """

    row: int
    modality: str
    index: int


@dataclass(frozen=True)
class ItemFinished:
    """Report an item that was made.

    Attributes:
        row: which prompt of the call.
        item: the item; its `index` is that of `ItemStarted`.
    """

    row: int
    item: Generated


Event = TextPiece | ItemStarted | ItemFinished


class Spoken:
    """Cut a text that grows token by token into final pieces.

    Args:
        decode: ids of the whole text so far -> its text.

    Attributes:
        text: the pieces so far, put together; no white space around it.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self.text = ""

    def more(self, ids: Sequence[int]) -> str:
        """Return the next piece of the text of `ids`, or nothing yet."""
        whole = self._decode(ids).lstrip()
        while whole and not whole[-1].isalnum():  # U+FFFD, an unfinished character, is none either
            whole = whole[:-1]
        return self._take(whole)

    def rest(self, ids: Sequence[int]) -> str:
        """Return the last piece of the text, which is now whole."""
        return self._take(self._decode(ids).strip())

    def _take(self, whole: str) -> str:
        piece = whole[len(self.text) :]
        self.text += piece
        return piece
