"""One sample being written down: text, special tokens and item slots, in a single line of tokens.

Text is encoded in runs that are as long as possible, so that ids equal those of the whole string
encoded at once; a run ends at a special token, at an item, and where an answer begins, so that a
prompt in use and the same prompt in training have the same ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from janus_plugins.sequence.blocks import PLAIN, Blocks

if TYPE_CHECKING:
    from janus_plugins.core.schema import ItemTokens, ModelBlock
    from janus_plugins.sequence.templates import Template
    from janus_plugins.sequence.tokenizers import TextTokenizer

NO_TARGET = -100

Ids = NDArray[np.int64]
Path = Literal["understanding", "generation"]


@dataclass(frozen=True)
class Spelling:
    """Hold what turns a sample into ids: a tokenizer, a chat template, and how items are written.

    Attributes:
        tokenizer, template: text to ids.
        tokens_of: special tokens around an item, by modality.
        blocks: how a generated item's codes are predicted, by modality (default: one by one).
    """

    tokenizer: TextTokenizer
    template: Template
    tokens_of: Callable[[str], ItemTokens]
    blocks: Mapping[str, Blocks] = field(default_factory=dict)

    @staticmethod
    def of(model: ModelBlock, tokenizer: TextTokenizer) -> Spelling:
        """Return the spelling of a run file's model."""
        from janus_plugins.sequence.templates import resolve_template

        template = resolve_template(model.language_model.template)
        blocks = {name: Blocks.of(made.parallel) for name, made in model.generation.items()}
        return Spelling(tokenizer, template, model.item_tokens, blocks)

    @property
    def bos(self) -> int:
        """Return the id that begins a sequence."""
        return self.tokenizer.id_of(self.template.bos)

    @property
    def eos(self) -> int:
        """Return the id that ends an assistant's turn."""
        return self.tokenizer.id_of(self.template.eos)

    @property
    def pad(self) -> int:
        """Return the id of padding, of item slots and of a dropped prompt."""
        return self.tokenizer.id_of(self.template.pad)


@dataclass(frozen=True)
class ItemSpan:
    """Say where one item's slots lie.

    Attributes:
        path: "understanding" (shown) or "generation" (learnt).
        modality: "image", "audio", ...
        start: first slot; the begin token is the slot before it.
        length: number of slots.
        item: index among the sample's items, in reading order.
        blocks: of a learnt item, how its codes are predicted.
    """

    path: Path
    modality: str
    start: int
    length: int
    item: int
    blocks: Blocks = PLAIN


class Line:
    """Write one line of tokens.

    Args:
        spelling: how text and items are spelt.
    """

    def __init__(self, spelling: Spelling) -> None:
        self._spelling = spelling
        self._ids: list[int] = []
        self._learn: list[bool] = []
        self._spans: list[ItemSpan] = []
        self._run = ""
        self._run_learn: list[bool] = []

    def literal(self, text: str, learn: bool = False) -> None:
        """Append a sample's text; nothing in it becomes a special token."""
        self._run += text
        self._run_learn += [learn] * len(text)

    def scaffold(self, text: str) -> None:
        """Append the template's text; special tokens in it count, and nothing of it is learnt."""
        for piece in self._spelling.tokenizer.split(text):
            if isinstance(piece, str):
                self.literal(piece)
            else:
                self.token(piece)

    def token(self, token: int, learn: bool = False) -> None:
        """Append one special token."""
        self.end_run()
        self._ids.append(token)
        self._learn.append(learn)

    def item(self, path: Path, modality: str, length: int, item: int, learn: bool = False) -> None:
        """Append an item's begin token and its slots. Its end token is the caller's decision."""
        self.token(self._spelling.tokenizer.id_of(self._spelling.tokens_of(modality).begin), learn)
        blocks = self._spelling.blocks.get(modality, PLAIN) if path == "generation" else PLAIN
        self._spans.append(ItemSpan(path, modality, len(self._ids), length, item, blocks))
        self._ids += [self._spelling.pad] * length
        self._learn += [False] * length

    def end_item(self, modality: str, learn: bool = False) -> None:
        """Append an item's end token."""
        self.token(self._spelling.tokenizer.id_of(self._spelling.tokens_of(modality).end), learn)

    def end_run(self) -> None:
        """Encode the text gathered so far. A token is learnt when its last character is."""
        if not self._run:
            return
        ids, offsets = self._spelling.tokenizer.encode_spans(self._run)
        self._ids += ids
        self._learn += [self._run_learn[max(last - 1, first)] for first, last in offsets]
        self._run, self._run_learn = "", []

    def finish(self) -> tuple[Ids, Ids, tuple[ItemSpan, ...]]:
        """Return ids [L], the text each slot predicts [L] (`NO_TARGET` for none), and the items."""
        self.end_run()
        ids = np.asarray(self._ids, dtype=np.int64)
        targets = np.full(len(ids), NO_TARGET, dtype=np.int64)
        learnt = np.asarray(self._learn[1:], dtype=bool)
        targets[:-1][learnt] = ids[1:][learnt]
        return ids, targets, tuple(self._spans)


def item_slots(spans: tuple[ItemSpan, ...], length: int) -> NDArray[np.bool_]:
    """Mark the slots of items, begin and end tokens included [length]."""
    marked = np.zeros(length, dtype=bool)
    for span in spans:
        marked[span.start - 1 : span.start + span.length + 1] = True
    return marked


def learnt_items(spans: tuple[ItemSpan, ...]) -> Iterator[ItemSpan]:
    """Yield the items that the model learns to make."""
    return (span for span in spans if span.path == "generation")
