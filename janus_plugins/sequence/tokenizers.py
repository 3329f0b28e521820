"""Tokenizers: text to ids and back, special tokens always looked up by string.

Every type ends as one `tokenizer.json` and runs in the `tokenizers` library: published ones, a
byte-level one that needs no training, and ones trained on the run's own text. How their vocabularies
are made is in `vocabularies.py`. Nothing here imports torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from janus_plugins.core.errors import BadSample, CheckpointError, RunFileError, WiringError
from janus_plugins.core.schema import TokenizerBlock
from janus_plugins.core.suggest import unexpanded

if TYPE_CHECKING:
    import tokenizers

    from janus_plugins.core.contracts import Tokenizer

FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
NUM_REQUIRED = 3
"""The first special tokens (bos, eos, pad) must exist in a published tokenizer."""


class TextTokenizer:
    """Be a `core.contracts.Tokenizer` that can also take text literally.

    Args:
        backend: a tokenizer of the `tokenizers` library.
        special: the special tokens that the model's sequences use, all known to `backend`.
    """

    def __init__(self, backend: tokenizers.Tokenizer, special: Sequence[str]) -> None:
        self._backend = backend
        self.special = tuple(dict.fromkeys(special))
        # Redeclared, because some published files list them as ordinary added tokens, which
        # `encode_special_tokens` would not take literally.
        backend.add_special_tokens(_added(self.special))
        self._literal = type(backend).from_str(backend.to_str())
        self._literal.encode_special_tokens = True
        self._added = {str(token.content): int(i) for i, token in backend.get_added_tokens_decoder().items()}
        self._reserved = frozenset(self.id_of(token) for token in self.special)
        longest_first = sorted(self._added, key=lambda token: (-len(token), token))
        self._splitter = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    def __getstate__(self) -> dict[str, Any]:
        return {"json": self._backend.to_str(), "special": self.special}

    def __setstate__(self, state: dict[str, Any]) -> None:
        from tokenizers import Tokenizer

        self.__init__(Tokenizer.from_str(state["json"]), state["special"])  # type: ignore[misc]

    def encode(self, text: str) -> list[int]:
        """Return the ids of text; special-token strings in it become their single id. No BOS added."""
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def encode_plain(self, text: str) -> list[int]:
        """Return the ids of text taken literally: what looks like a special token stays text.

        Raises:
            BadSample: where the vocabulary has no other spelling for it.
        """
        return self.encode_spans(text)[0]

    def encode_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Do `encode_plain`, and say which characters [first, last) each id covers."""
        if not text.isascii() and any("\ud800" <= sign <= "\udfff" for sign in text):
            raise BadSample("the text holds half a surrogate pair, which no encoding of Unicode allows")
        encoded = self._literal.encode(text, add_special_tokens=False)
        found = self._reserved.intersection(encoded.ids)
        if found:
            names = [token for token in self.special if self.id_of(token) in found]
            raise BadSample(f"the text contains {names[0]!r}, which this tokenizer can only read as special")
        return list(encoded.ids), list(encoded.offsets)

    def split(self, text: str) -> list[str | int]:
        """Cut text into plain pieces and the ids of the added tokens between them."""
        if not self._added:
            return [text] if text else []
        return [self._added.get(piece, piece) for piece in self._splitter.split(text) if piece]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens left out."""
        return str(self._backend.decode(list(ids), skip_special_tokens=True))

    def id_of(self, token: str) -> int:
        """Return the id of one special token's string, or raise `RunFileError`."""
        found = self._added.get(token)
        if found is None:
            near = get_close_matches(token, self._added, n=1)
            hint = f"; the nearest it has is {near[0]!r}" if near else ""
            raise RunFileError(f"the tokenizer has no special token {token!r}{hint}")
        return found

    def __len__(self) -> int:
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    def vocabulary(self) -> dict[str, int]:
        """Return every token's id, those of added tokens too."""
        return dict(self._backend.get_vocab(with_added_tokens=True))

    def save(self, folder: str) -> None:
        """Write `tokenizer.json` and a small `tokenizer_config.json` into a folder."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        (target / FILE).write_text(self._backend.to_str(pretty=True), encoding="utf-8")
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "special_tokens": list(self.special)}
        (target / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def vocabulary_of(tokenizer: object) -> dict[str, int] | None:
    """Return every token's id; None of a tokenizer that does not tell."""
    return tokenizer.vocabulary() if isinstance(tokenizer, TextTokenizer) else None


def build_tokenizer(
    block: TokenizerBlock, special: Sequence[str], texts: Iterable[str] | None = None
) -> TextTokenizer:
    """Make the tokenizer that a run file asks for.

    Args:
        block: the run file's choice.
        special: special tokens of the model: bos, eos and pad first, then those around items.
        texts: what a tokenizer of type "trained" learns from; equal texts give equal tokenizers.

    Raises:
        RunFileError: where the choice cannot be met.
    """
    from janus_plugins.sequence import vocabularies

    if block.type == "pretrained":
        backend = _published(str(block.path))
        _require(backend, special[:NUM_REQUIRED], str(block.path))
    elif block.type == "bytes":
        backend = vocabularies.byte_level()
    else:
        if texts is None:
            raise RunFileError("a tokenizer of type 'trained' needs the run's texts, and none were given")
        backend = vocabularies.trained(texts, special, str(block.level), int(block.vocab_size or 0))
    return TextTokenizer(backend, special)


def check_room(tokenizer: Tokenizer, room: int) -> None:
    """Refuse a tokenizer that has more entries than the language model embeds.

    Raises:
        WiringError: with both numbers.
    """
    if len(tokenizer) > room:
        raise WiringError(
            f"language_model.tokenizer has {len(tokenizer)} entries, special tokens included, but the "
            f"language model embeds {room} (vocab_size); raise vocab_size or choose a smaller tokenizer"
        )


def check_tokenizer(block: TokenizerBlock, special: Sequence[str], room: int) -> None:
    """Refuse a tokenizer that cannot be had, or that does not fit `room`, without texts and network.

    One that is to be downloaded, or is not there yet, passes.

    Raises:
        RunFileError: as `build_tokenizer` and `check_room`.
    """
    if block.type != "pretrained" or Path(str(block.path)).expanduser().exists():
        check_room(build_tokenizer(block, special, ()), room)


def load_tokenizer(folder: str | Path) -> TextTokenizer:
    """Read what `TextTokenizer.save` wrote, without network.

    Raises:
        CheckpointError: where the folder has no readable tokenizer.
    """
    from tokenizers import Tokenizer

    source = Path(folder)
    for name in (FILE, CONFIG_FILE):
        if not (source / name).is_file():
            raise CheckpointError(f"{source} has no {name}; is it a model folder?")
    try:
        special = json.loads((source / CONFIG_FILE).read_text(encoding="utf-8"))["special_tokens"]
        return TextTokenizer(Tokenizer.from_file(str(source / FILE)), special)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise CheckpointError(f"the tokenizer in {source} cannot be read: {error}") from error


def _added(special: Iterable[str]) -> list[Any]:
    from tokenizers import AddedToken

    return [AddedToken(token, special=True, normalized=False) for token in special]


def _published(path: str) -> tokenizers.Tokenizer:
    """Open a tokenizer.json, a folder that holds one, or a hub id."""
    from tokenizers import Tokenizer

    local = Path(path)
    if local.exists() or local.suffix == ".json" or path.startswith((".", "/", "~")):
        file = local.expanduser() / FILE if local.expanduser().is_dir() else local.expanduser()
        if not file.is_file():
            raise RunFileError(
                f"tokenizer.path: {file} does not exist{unexpanded(path)}; where a model has only "
                "SentencePiece files, make it with transformers' AutoTokenizer.from_pretrained(...)."
                "save_pretrained(...)"
            )
        return _opened(lambda: Tokenizer.from_file(str(file)), path)
    return _opened(lambda: Tokenizer.from_pretrained(path), path)


def _opened(read: Callable[[], tokenizers.Tokenizer], path: str) -> tokenizers.Tokenizer:
    try:
        return read()
    except Exception as error:  # the tokenizers library raises bare Exception
        raise RunFileError(f"tokenizer.path: {path!r} cannot be opened: {error}{unexpanded(path)}") from error


def _require(backend: tokenizers.Tokenizer, tokens: Sequence[str], path: str) -> None:
    """Refuse a published tokenizer without bos, eos or pad: the model was trained with its own."""
    known = [str(token.content) for token in backend.get_added_tokens_decoder().values()]
    for token in tokens:
        if backend.token_to_id(token) is None:
            near = get_close_matches(token, known, n=1) or known[:3]
            raise RunFileError(
                f"the tokenizer {path!r} has no token {token!r}; set bos, eos and pad of the template to "
                f"ones that it has, such as {', '.join(map(repr, near)) or 'those of its own files'}"
            )
