"""Guess what was meant by a misspelt word, for error messages."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(word: str, words: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the closest of `words`, or "" when none is close."""
    spellings = {candidate.lower().replace("_", "-"): candidate for candidate in words}
    close = get_close_matches(word.lower().replace("_", "-"), spellings, n=1)
    return f" Did you mean {spellings[close[0]]!r}?" if close else ""
