"""The vocabularies of tokenizers that need no download: bytes, words, and byte-level BPE."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from janus_plugins.core.errors import RunFileError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

UNKNOWN = "<unk>"
NUM_BYTES = 256
WORD = r"\n|\w+(?:['’\-]\w+)*|[^\w\s]"
"""A word-level token: a line end, a word with its inner apostrophes and hyphens, or one other sign."""

JOINED = ((" :", ":"), (" ;", ";"), (" )", ")"), ("( ", "("), (" \n", "\n"), ("\n ", "\n"))
"""What decoding words puts together, beyond full stops, commas, question and exclamation marks."""

_log = logging.getLogger(__name__)


def byte_alphabet() -> dict[str, int]:
    """Return the printable character that stands for each byte, as GPT-2 chose them, with its byte."""
    ranges = (("!", "~"), ("¡", "¬"), ("®", "ÿ"))
    printable = [byte for first, last in ranges for byte in range(ord(first), ord(last) + 1)]
    others = [byte for byte in range(NUM_BYTES) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(NUM_BYTES + rank): byte for rank, byte in enumerate(others)})
    return table


def byte_level() -> Tokenizer:
    """Make a tokenizer whose ids 0 to 255 are the bytes of UTF-8."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    backend = Tokenizer(models.BPE(vocab=byte_alphabet(), merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def trained(texts: Iterable[str], special: Sequence[str], level: str, vocab_size: int) -> Tokenizer:
    """Learn a vocabulary of at most `vocab_size` entries, special tokens included.

    Equal texts give equal vocabularies: entries are ordered by count, then by spelling.

    Raises:
        RunFileError: where `vocab_size` does not even hold what every vocabulary needs.
    """
    unique = tuple(dict.fromkeys(special))
    fixed = len(unique) + (NUM_BYTES if level == "bpe" else 2)
    if vocab_size <= fixed:
        raise RunFileError(
            f"tokenizer.vocab_size is {vocab_size}, but {len(unique)} special tokens and the base entries of "
            f"level {level!r} take {fixed}; set it higher"
        )
    return _bpe(texts, unique, vocab_size) if level == "bpe" else _words(texts, unique, vocab_size)


def _bpe(texts: Iterable[str], special: Sequence[str], vocab_size: int) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special),
        initial_alphabet=list(byte_alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def _words(texts: Iterable[str], special: Sequence[str], vocab_size: int) -> Tokenizer:
    """Learn whole words. Case is folded, spaces are not kept, rare words become `<unk>`."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    backend = Tokenizer(models.WordLevel(vocab={UNKNOWN: 0}, unk_token=UNKNOWN))
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)
    joins = [decoders.Replace(apart, together) for apart, together in JOINED]
    # The prefix is a character that `WORD` never yields: no word is glued to the one before it.
    pieces = decoders.WordPiece(prefix="\x00", cleanup=True)
    backend.decoder = decoders.Sequence([pieces, decoders.Fuse(), *joins])

    counts: Counter[str] = Counter()
    for text in texts:
        normal = backend.normalizer.normalize_str(text)
        counts.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal))
    counts.pop("\n", None)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    entries = [*special, UNKNOWN, "\n", *ranked][:vocab_size]
    dropped = len(special) + 2 + len(ranked) - len(entries)
    if dropped:
        _log.warning("tokenizer: %d of %d words do not fit vocab_size %d", dropped, len(ranked), vocab_size)
    backend.model = models.WordLevel(
        vocab={entry: index for index, entry in enumerate(entries)}, unk_token=UNKNOWN
    )
    return backend
