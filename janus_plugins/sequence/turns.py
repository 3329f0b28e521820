"""How the turns of a conversation become a line: role tags, items, and what is learnt.

The chat format is the official code's (`janus/utils/conversation.py`, and `processing_vlm.py` for
items). Choices where no source says: in the plain style a line end stands between a question and
its answer, and before an answer that may begin with anything; a begin token is learnt only where a
stage asks for it (`learn_begin`), and so is the line end between a made item and the text after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from janus_plugins.core.samples import Item, Turn
from janus_plugins.sequence.line import Line, Path, Spelling
from janus_plugins.sequence.templates import AFTER_ITEM

Style = Literal["plain", "chat"]
Opening = Literal["text", "item"]
"""What an assistant's turn begins with."""


@dataclass(frozen=True)
class Rules:
    """Say how turns are joined and which of their text is learnt.

    Attributes:
        style: "chat" with role tags, "plain" without.
        learn_prompts: the users' text is learnt.
        learn_answers: the assistant's text, and the EOS that ends it, is learnt.
        close_generated: a generated item is ended by its end token and EOS, both learnt.
        learn_begin: the begin token of an item in an answer is learnt.
        free: nobody says what an answer begins with: it is opened as text is, whatever comes.
        system: system prompt of a chat whose sample brings none.
    """

    style: Style
    learn_prompts: bool = False
    learn_answers: bool = False
    close_generated: bool = False
    learn_begin: bool = False
    free: bool = False
    system: str = ""


class TurnWriter:
    """Write turns into a line.

    Args:
        spelling: how text and items are spelt.
        rules: how turns are joined.
        token_counts: slots of each item, in reading order.
    """

    def __init__(self, spelling: Spelling, rules: Rules, token_counts: Sequence[int]) -> None:
        self.line = Line(spelling)
        self._spelling = spelling
        self._template = spelling.template
        self._rules = rules
        self._counts: Iterator[tuple[int, int]] = iter(enumerate(token_counts))
        self._chat = False

    def write(self, turns: Sequence[Turn], then: Opening | None) -> None:
        """Write every turn; `then` opens an assistant's turn that is still to be written.

        A sample without a user's turn is no conversation: it is written plainly in either style.
        """
        self._chat = self._rules.style == "chat" and any(turn.role == "user" for turn in turns)
        self.line.token(self._spelling.bos)
        if self._chat and self._rules.system and turns[0].role != "system":
            self.line.scaffold(self._rules.system + self._template.separator)
        for turn, following in zip(turns, [*turns[1:], None], strict=True):
            if turn.role == "assistant":
                self._answer(turn, last=following is None)
            else:
                self._prompt(turn, then if following is None else self._opened(following))
        if then is not None and self._chat:
            self.line.scaffold(f"{self._template.assistant}:")

    def _opened(self, turn: Turn) -> Opening:
        return "text" if self._rules.free else _opening(turn)

    def _prompt(self, turn: Turn, opening: Opening | None) -> None:
        if turn.role == "system" and _empty(turn):  # no system prompt at all, as in the official code
            return
        if self._chat and turn.role == "user" and _empty(turn):
            self.line.scaffold(f"{self._template.user}:")
            return
        if self._chat and turn.role == "user":
            self.line.scaffold(f"{self._template.user}: ")
        self._parts(turn, learn=self._rules.learn_prompts and turn.role == "user")
        if self._chat:
            self.line.scaffold(self._template.separator)
        elif opening == "text" and turn.parts and isinstance(turn.parts[-1], str):
            self.line.scaffold(AFTER_ITEM)

    def _answer(self, turn: Turn, last: bool) -> None:
        if self._chat:
            self.line.scaffold(f"{self._template.assistant}:")
        if self._chat and _empty(turn):
            return
        self.line.end_run()  # the answer's first id must not depend on the prompt, nor the reverse
        learn = self._rules.learn_answers
        if self._chat and _opening(turn) == "text":
            self.line.literal(" ", learn)
        self._parts(turn, learn)
        final = turn.parts[-1] if turn.parts else ""
        if not isinstance(final, Item) or not final.learn:
            self.line.token(self._spelling.eos, learn)
        elif self._rules.close_generated or not last:
            self.line.end_item(final.modality, self._rules.close_generated)
            self.line.token(self._spelling.eos, self._rules.close_generated)

    def _parts(self, turn: Turn, learn: bool) -> None:
        for position, part in enumerate(turn.parts):
            if isinstance(part, Item):
                self._item(part, last=position + 1 == len(turn.parts))
            else:
                self._text(turn, position, part, learn)

    def _item(self, item: Item, last: bool) -> None:
        index, count = next(self._counts)
        path: Path = "generation" if item.learn else "understanding"
        self.line.item(path, item.modality, count, index, item.learn and self._rules.learn_begin)
        if not item.learn:
            self.line.end_item(item.modality)
        elif not last:
            self.line.end_item(item.modality, self._rules.close_generated)

    def _text(self, turn: Turn, position: int, text: str, learn: bool) -> None:
        if self._chat:  # the official code strips each message
            text = text.lstrip() if position == 0 else text
            text = text.rstrip() if position + 1 == len(turn.parts) else text
            before = turn.parts[position - 1] if position else ""
            if isinstance(before, Item) and text and not text.startswith("\n"):
                if learn and before.learn:  # a model goes on by itself after an item of its own
                    self.line.literal(AFTER_ITEM, learn)
                else:
                    self.line.scaffold(AFTER_ITEM)
        self.line.literal(text, learn)


def _empty(turn: Turn) -> bool:
    """Say whether a turn has nothing to say; the official code ends such a one after its role's colon."""
    return all(isinstance(part, str) and not part.strip() for part in turn.parts)


def _opening(turn: Turn) -> Opening:
    return "item" if turn.parts and isinstance(turn.parts[0], Item) else "text"
