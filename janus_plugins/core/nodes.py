"""Values of a run file that remember where they came from: a file's line, or an override."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

KeyPath = tuple[str | int, ...]
"""Keys and indices from the top of a file to a value."""


@dataclass(frozen=True)
class Node:
    """Hold one value and where it came from.

    Attributes:
        value: dict[str, Node], list[Node], str, int, float, bool or None.
        source: file name, or the override that set it.
        line: 1-based line of the value (of its key, inside a mapping); 0 where there are no lines.
    """

    value: Any
    source: str
    line: int = 0

    @property
    def where(self) -> str:
        """Return "file:line", or the source alone where there are no lines."""
        return f"{self.source}:{self.line}" if self.line else self.source

    def plain(self) -> Any:
        """Return the value as dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        return [node.plain() for node in self.value] if isinstance(self.value, list) else self.value

    def child(self, key: str | int) -> Node | None:
        """Return the node under one key or index, or None."""
        if isinstance(self.value, dict):
            return self.value.get(key)
        inside = isinstance(self.value, list) and isinstance(key, int) and 0 <= key < len(self.value)
        return self.value[key] if inside else None

    def nearest(self, path: KeyPath) -> Node:
        """Return the node at `path`, or the last one on the way that exists."""
        node = self
        for key in path:
            below = node.child(key)
            if below is None:
                break
            node = below
        return node
