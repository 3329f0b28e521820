"""A tokenizer.json as text: made complete, and held against another one."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer


def complete(text: str, special: Sequence[str]) -> str:
    """Return a tokenizer.json that has every special token; one that has them all is returned as it is.

    The official code adds the placeholder of a picture when it loads a tokenizer without one.
    """
    tokenizer = Tokenizer.from_str(text)
    missing = [token for token in special if tokenizer.token_to_id(token) is None]
    if not missing:
        return text
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in missing])
    return str(tokenizer.to_str(pretty=True))


def same_tokenizer(one: str, other: str) -> bool:
    """Say whether two tokenizer.json give every text the same ids, but for a BOS that one puts first.

    How added tokens are flagged does not count: loading declares them anew.
    """
    return _said(one) == _said(other)


def _said(text: str) -> tuple[object, ...]:
    data = json.loads(Tokenizer.from_str(text).to_str())  # by the library, which spells merges in one way
    added = {each["content"]: each["id"] for each in data["added_tokens"]}
    return data["model"], added, data["normalizer"], data["pre_tokenizer"]
