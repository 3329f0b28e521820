"""Read YAML safely and remember where every value stands.

PyYAML's own loader is too trusting for run files: `1e-4` is text to it, `on` is true, `12:30` is 750,
a key given twice keeps the last value, and a few hundred bytes of aliases fill the memory. Here
scalars follow the YAML 1.2 core schema, a key may be given once, tags are refused, numbers are finite,
and size, depth and aliases are capped. Anchors and merge keys (`<<`) work.

Knows nothing of what the keys mean.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from janus_plugins.core.errors import RunFileError
from janus_plugins.core.nodes import KeyPath, Node
from janus_plugins.core.suggest import unexpanded

MAX_BYTES = 128 * 1024
MAX_DEPTH = 64
MAX_VALUES = 10_000
"""Most keys and values of one file, aliases counted at their full size."""

_HINTS = {
    "found character '\\t' that cannot start any token": "; indent with spaces",
    "mapping values are not allowed here": "; put text that holds ': ' in quotes",
}
_TAG = "tag:yaml.org,2002:"
_MAX_INTEGER = 2**63 - 1


@dataclass(frozen=True)
class Document:
    """Hold one parsed file, a mapping at its top."""

    root: Node

    @property
    def data(self) -> dict[str, Any]:
        """Return the file's content as dicts, lists and scalars."""
        return self.root.plain()  # type: ignore[no-any-return]

    def line_of(self, path: KeyPath) -> int | None:
        """Return the 1-based line at which the value at `path` is given, or None."""
        node: Node | None = self.root
        for key in path:
            node = node.child(key) if node else None
        return node.line if node else None


def load_yaml(path: Path | str) -> Document:
    """Read a file whose top level is a mapping.

    Raises:
        RunFileError: naming `file:line:column`, if it cannot be read or used.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        places = (Path(path, "config.yaml"), Path(path, "model", "config.yaml"))
        inside = [place for place in places if place.is_file()]
        hint = f"; the model in it has the run file {inside[0]}" if inside else ""
        raise RunFileError(f"{path}: cannot be read ({error.strerror}){hint}") from error
    return load_yaml_text(_decode(raw, str(path)), str(path))


def load_yaml_text(text: str, source: str) -> Document:
    """Read text whose top level is a mapping; `source` names it in messages."""
    if len(text.encode(errors="replace")) > MAX_BYTES:
        raise RunFileError(f"{source}: larger than {MAX_BYTES // 1024} KiB, too large for a run file")
    root = parse_yaml(text, source)
    if root.value is None:
        raise RunFileError(f"{source}:1:1: the file is empty; it needs at least 'model:'")
    if not isinstance(root.value, dict):
        raise RunFileError(f"{root.where}:1: the top level must be 'key: value' lines, not {_kind(root)}")
    return Document(root)


def parse_yaml(text: str, source: str, numbered: bool = True) -> Node:
    """Parse any one YAML value; an empty text is null.

    Args:
        text: the YAML.
        source: what messages call it.
        numbered: whether lines mean something to the reader (not for a `--set` value).

    Raises:
        RunFileError: naming `source:line:column`.
    """
    try:
        raw = _Composer(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        problem = f"{error.problem} ({error.context})" if error.context else error.problem
        hint = _HINTS.get(error.problem or "", "") or _variable(text, error.problem_mark)
        raise RunFileError(f"{_place(source, error.problem_mark, numbered)}: {problem}{hint}") from None
    except yaml.reader.ReaderError as error:
        mark = _mark(text, error.position)
        character = f"U+{ord(text[error.position]):04X}"
        raise RunFileError(f"{_place(source, mark, numbered)}: {character} may not stand in YAML") from None
    return Node(None, source) if raw is None else _Builder(source, numbered).build(raw)


def _variable(text: str, mark: Any) -> str:
    """Return what to say where YAML stumbles over a variable: `{path: ${DATA}/x}`."""
    name = re.compile(r"\$\{\w+\}").match(text, max(mark.index - 1, 0)) if mark else None
    return unexpanded(name[0]) if name else ""


class _Composer(yaml.SafeLoader):
    """Compose PyYAML's nodes under our limits. It constructs nothing; `_Builder` does."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0
        self.values = 0
        self.sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Count depth and values; an alias counts for all that stands behind it."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        self._limit(
            getattr(event, "tag", None) in (None, "!"), "tags are not allowed; put text in quotes", event
        )
        self.depth += 1
        self._limit(self.depth <= MAX_DEPTH, f"nested more than {MAX_DEPTH} deep", event)
        before, self.values = self.values, self.values + 1
        node = super().compose_node(parent, index)
        if isinstance(event, yaml.AliasEvent):
            self._limit(id(node) in self.sizes, "an alias inside its own anchor", event)
            self.values = before + self.sizes[id(node)]
        self._limit(
            self.values <= MAX_VALUES, f"more than {MAX_VALUES} values, aliases counted in full", event
        )
        self.sizes[id(node)] = self.values - before
        self.depth -= 1
        return node

    def _limit(self, fine: bool, problem: str, event: Any) -> None:
        if not fine:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


_Composer.yaml_implicit_resolvers = {}
for _name, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", [*"-+0123456789"]),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", [*"-+.0123456789"]),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", [*"-+."]),
    ("merge", r"<<", ["<"]),
):  # YAML 1.2.2 section 10.3.2, and the merge key of YAML 1.1
    _Composer.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), _first)


class _Dumper(yaml.SafeDumper):
    """Write what `_Composer` reads back unchanged: text that it would take for a number is quoted."""

    yaml_implicit_resolvers = _Composer.yaml_implicit_resolvers


def dump_yaml(data: Any) -> str:
    """Write plain data as YAML that this module reads back to equal data."""
    text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return str(text)


class _Builder:
    """Turn PyYAML's nodes into ours; every refusal names file, line and column."""

    def __init__(self, source: str, numbered: bool) -> None:
        self.source = source
        self.numbered = numbered

    def build(self, raw: yaml.Node, key: yaml.Node | None = None) -> Node:
        """Build one value; `key` is the node of its key."""
        value: Any
        if isinstance(raw, yaml.MappingNode):
            value = self._mapping(raw)
        elif isinstance(raw, yaml.SequenceNode):
            value = [self.build(each) for each in raw.value]
        else:
            value = self._scalar(raw)
        return Node(value, self.source, (key or raw).start_mark.line + 1 if self.numbered else 0)

    def _mapping(self, raw: yaml.MappingNode) -> dict[str, Node]:
        merged: dict[str, Node] = {}
        own: dict[str, Node] = {}
        for key, value in raw.value:
            if key.tag == _TAG + "merge":
                merged = {**self._merged(value), **merged}
                continue
            name = self._key(key)
            if name in own:
                first = f", first on line {own[name].line}" if self.numbered else ""
                raise self._refuse(key, f"key {name!r} is given twice{first}; keep one")
            own[name] = self.build(value, key)
        return {**merged, **own}

    def _merged(self, raw: yaml.Node) -> dict[str, Node]:
        """Build what `<<` brings in; of several mappings the first that has a key wins."""
        content: dict[str, Node] = {}
        for each in raw.value if isinstance(raw, yaml.SequenceNode) else [raw]:
            if not isinstance(each, yaml.MappingNode):
                raise self._refuse(each, "'<<' takes a mapping or a list of mappings")
            content = {**self._mapping(each), **content}
        return content

    def _key(self, raw: yaml.Node) -> str:
        if not isinstance(raw, yaml.ScalarNode):
            raise self._refuse(raw, "a key must be text")
        if raw.tag != _TAG + "str":
            raise self._refuse(raw, f"a key must be text; write '{raw.value}' in quotes")
        return str(raw.value)

    def _scalar(self, raw: yaml.Node) -> str | int | float | bool | None:
        text, kind = str(raw.value), raw.tag.removeprefix(_TAG)
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind not in ("int", "float"):
            return text
        number = _number(text)
        if number is None:
            raise self._refuse(raw, f"{text:.40} is not a finite number of at most 64 bits")
        return number if kind == "int" else float(number)

    def _refuse(self, raw: yaml.Node, problem: str) -> RunFileError:
        return RunFileError(f"{_place(self.source, raw.start_mark, self.numbered)}: {problem}")


def _number(text: str) -> int | float | None:
    """Return the number that `text` spells, or None where it is infinite, NaN or too large."""
    try:
        base = {"0x": 16, "0o": 8}.get(text[:2])
        whole = int(text[2:], base) if base else int(text)
        return whole if abs(whole) <= _MAX_INTEGER else None
    except ValueError:
        pass
    try:
        real = float(text)
    except ValueError:  # .inf and .nan are not Python's spelling
        return None
    return real if math.isfinite(real) else None


def _decode(raw: bytes, source: str) -> str:
    if len(raw) > MAX_BYTES:
        raise RunFileError(f"{source}: larger than {MAX_BYTES // 1024} KiB, too large for a run file")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - raw.rfind(b"\n", 0, error.start)
        raise RunFileError(
            f"{source}:{line}:{column}: byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from None


def _mark(text: str, position: int) -> yaml.Mark:
    line, column = text.count("\n", 0, position), position - text.rfind("\n", 0, position) - 1
    return yaml.Mark("", position, line, column, None, 0)


def _place(source: str, mark: Any, numbered: bool) -> str:
    return f"{source}:{mark.line + 1}:{mark.column + 1}" if numbered and mark else source


def _kind(node: Node) -> str:
    return "a list" if isinstance(node.value, list) else f"{node.value!r:.40}"
