"""What error messages share: a guess at what was meant by a misspelt word, and how a text is shown."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

_VARIABLE = re.compile(r"\$([A-Za-z_]\w*|\{\w+\})")


def closest(word: str, words: Iterable[str]) -> str | None:
    """Return the one of `words` that is spelt most alike, or None when none is close."""
    spellings = {candidate.lower().replace("_", "-"): candidate for candidate in words}
    close = get_close_matches(word.lower().replace("_", "-"), spellings, n=1)
    return spellings[close[0]] if close else None


def nearest(word: str, words: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the closest of `words`, or "" when none is close."""
    close = closest(word, words)
    return f" Did you mean {close!r}?" if close else ""


def unexpanded(path: str) -> str:
    """Return what to say of a path that was not found and holds $NAME or ${NAME}, or ""."""
    found = _VARIABLE.search(path)
    return f"; environment variables are not expanded: write what {found[0]} stands for" if found else ""


def quoted(text: str, limit: int = 60) -> str:
    """Return a text as a message shows it: in quotes, and cut off where it is long."""
    return repr(text if len(text) <= limit else f"{text[:limit]}…")
