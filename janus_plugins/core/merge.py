"""Lay one run file over another, and `--set` overrides over both.

Mappings merge key by key, everything else is replaced. Two rules are particular to run files: stages
of a base are overridden by name, and a component that is replaced by another (or by a share of one)
loses its options. An evaluation names its component by `task`, and a tokenizer is another one by its `type`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from janus_plugins.core.catalogue import OWN
from janus_plugins.core.errors import RunFileError
from janus_plugins.core.frame import below, holds_keys, model_of, names_entries
from janus_plugins.core.nodes import KeyPath, Node
from janus_plugins.core.schema import TOKENIZER_KEYS, RunConfig, StageBlock, TokenizerBlock
from janus_plugins.core.suggest import nearest
from janus_plugins.core.yaml_file import parse_yaml

_PART = re.compile(r"\"([^\"]+)\"|'([^']+)'|([^.=\"']+)")
_LONGEST = 100
_TOKENIZER = TokenizerBlock.model_fields["type"].default


@dataclass(frozen=True)
class Override:
    """Hold one `--set path=value`.

    Attributes:
        text: as the user gave it.
        parts: the path, split at its dots.
        value: the parsed value; its source names the override.
    """

    text: str
    parts: tuple[str, ...]
    value: Node

    def refusal(self, problem: str) -> RunFileError:
        """Make the error that names this override."""
        return RunFileError(f"{self.value.source}: {problem}")


def merge_files(base: Node, over: Node) -> Node:
    """Lay run file `over` over run file `base`; a mapping under `stages:` overrides stages by name.

    Raises:
        RunFileError: a stage is overridden, or an entry removed by null, that the base has not.
    """
    _refuse_removals(base, over, RunConfig, (), base.source if base.value else "")
    stages = over.value.get("stages")
    if stages is not None and isinstance(stages.value, dict):
        merged = _merge_stages(base.value.get("stages"), stages)
        over = replace(over, value={**over.value, "stages": merged})
    return _merge(base, over)


def parse_override(text: str) -> Override:
    """Split "path=value"; keys that hold dots may be quoted, the value is YAML.

    Raises:
        RunFileError: if it does not read so.
    """
    source = f"--set {text if len(text) <= _LONGEST else text[:_LONGEST] + '...'}"
    parts, at = [], 0
    while match := _PART.match(text, at):
        parts.append(next(group for group in match.groups() if group is not None).strip())
        at = match.end()
        if text[at : at + 1] != ".":
            break
        at += 1
    if not parts or text[at : at + 1] != "=":
        raise RunFileError(f"{source}: write path=value, e.g. --set stages.unified.steps=100")
    return Override(text, tuple(parts), parse_yaml(text[at + 1 :], source, numbered=False))


def apply_override(root: Node, override: Override) -> Node:
    """Return the run file with one value set.

    Raises:
        RunFileError: if the path leads nowhere, with the nearest key.
    """
    keys = _keys(root, RunConfig, override.parts, override)
    if override.value.value is None:
        _refuse_removal(root, keys, override)
    annotation: Any = RunConfig
    for key in keys:
        annotation = below(annotation, key)
    # It takes the place of what was there.
    _refuse_removals(None, override.value, annotation, tuple(map(str, keys)), "")
    return _put(root, keys, override.value)


def _refuse_removals(
    base: Node | None, over: Node, annotation: Any, path: tuple[str, ...], whose: str
) -> None:
    """Refuse every null of `over` that removes an entry which `base` has not, the file `whose` ("": none).

    A list takes the place of the base's, so nothing can be removed by it.
    """
    if isinstance(over.value, list):
        _refuse_empty_items(over, annotation, path)
        for index, node in enumerate(over.value):
            _refuse_removals(None, node, below(annotation, index), (*path, str(index)), "")
    if not isinstance(over.value, dict):
        return
    for key, node in over.value.items():
        there, inner = base.child(key) if base else None, (*path, key)
        if node.value is None and names_entries(annotation, key) and _is_empty(there):
            named = ".".join(inner)
            problem = f"{whose} has no {named} to remove.{_near(key, base)}"
            raise RunFileError(f"{node.where}: {problem if whose else f'{named}: is empty; {_advice(key)}'}")
        _refuse_removals(there, node, below(annotation, key), inner, whose)


def _advice(key: str) -> str:
    """Return what to do about an entry without a value; YAML takes `{a:1}` for the key "a:1"."""
    name, colon, value = key.partition(":")
    return f"write '{name}: {value}', with a space" if colon and value else "remove the line"


def _refuse_empty_items(over: Node, annotation: Any, path: tuple[str, ...]) -> None:
    for index, node in enumerate(over.value):
        if node.value is None and model_of(below(annotation, index)) is not None:
            raise RunFileError(f"{node.where}: {'.'.join(path)}[{index}]: is empty; remove the line")


def _refuse_removal(root: Node, keys: KeyPath, override: Override) -> None:
    """Refuse an override by null of an entry that the run has not."""
    annotation: Any = RunConfig
    parent: Node | None = root
    for key in keys[:-1]:
        annotation, parent = below(annotation, key), parent.child(key) if parent else None
    last = str(keys[-1])
    if names_entries(annotation, last) and _is_empty(parent.child(keys[-1]) if parent else None):
        there = _near(last, parent)
        raise override.refusal(f"the run has no {'.'.join(override.parts)} to remove.{there}")


def _is_empty(node: Node | None) -> bool:
    return node is None or node.value is None


def _near(key: str, parent: Node | None) -> str:
    """Return the entry of a mapping that was meant, or all that it has."""
    content = parent.value if parent is not None and isinstance(parent.value, dict) else {}
    there = [name for name, node in content.items() if not _is_empty(node)]
    return nearest(key, there) or f" It has: {', '.join(there) or 'none'}"


def _merge(base: Node, over: Node, path: KeyPath = ()) -> Node:
    if not (isinstance(base.value, dict) and isinstance(over.value, dict)):
        return over
    content = _without_replaced(base.value, over.value, path)
    for key, node in over.value.items():
        content[key] = _merge(content[key], node, (*path, key)) if key in content else node
    return replace(over, value=content)


def _without_replaced(mapping: dict[str, Node], over: dict[str, Node], path: KeyPath) -> dict[str, Node]:
    """Copy the mapping at a path; where `over` names another component, what belonged to the old one goes."""
    key = "task" if path[:1] == ("evaluation",) and len(path) == 2 else "use"
    old, use = mapping.get(key), over.get(key)
    gone: tuple[str, ...] = ()
    if "share" in over and old is not None:
        gone = ("use", "options", "weights")
    elif use is not None and old is not None and _bare(use) != _bare(old):
        gone = ("options", "weights")
    elif use is not None and "share" in mapping:
        gone = ("share",)
    kind, wanted = mapping.get("type"), over.get("type")
    another = wanted is not None and wanted.value != (kind.value if kind else _TOKENIZER)
    if another and path == ("model", "language_model", "tokenizer"):
        gone = tuple(TOKENIZER_KEYS)
    return {key: node for key, node in mapping.items() if key not in gone}


def _bare(use: Node) -> Any:
    """Return a component's name as it is called without us: "janus-plugins/mlp" is no other than "mlp"."""
    return use.value.removeprefix(f"{OWN}/") if isinstance(use.value, str) else use.value


def _merge_stages(base: Node | None, over: Node) -> Node:
    if base is None or not isinstance(base.value, list):
        raise RunFileError(
            f"{over.where}: stages: a mapping overrides the stages of a base file, and there are none; "
            "write a list, each with '- name: ...'"
        )
    stages = list(base.value)
    for name, node in over.value.items():
        position = _stage_named(stages, name)
        if position is None:
            known = _stage_names(stages)
            raise RunFileError(
                f"{node.where}: stages.{name}: {base.source} has no such stage.{nearest(name, known)} "
                f"It has: {', '.join(known)}"
            )
        _refuse_removals(stages[position], node, StageBlock, ("stages", name), base.source)
        stages[position] = _merge(stages[position], node, ("stages", position))
    return replace(over, value=stages)


def _stage_names(stages: list[Node]) -> list[str]:
    names = [stage.child("name") for stage in stages]
    return [str(name.value) for name in names if name is not None]


def _stage_named(stages: list[Node], name: str) -> int | None:
    for position, stage in enumerate(stages):
        found = stage.child("name")
        if found is not None and found.value == name:
            return position
    return None


def _keys(node: Node | None, annotation: Any, parts: tuple[str, ...], override: Override) -> KeyPath:
    """Turn the parts of a path into keys of the file, joining parts where a key holds dots."""
    if not parts:
        return ()
    key, used = _next_key(node, annotation, parts, override)
    child = node.child(key) if node else None
    return (key, *_keys(child, below(annotation, key), parts[used:], override))


def _next_key(
    node: Node | None, annotation: Any, parts: tuple[str, ...], override: Override
) -> tuple[str | int, int]:
    """Return the next key, and how many parts of the path it takes up."""
    if node is not None and isinstance(node.value, list):
        return _element(node.value, parts[0], override), 1
    model, here = model_of(annotation), node.value if node and isinstance(node.value, dict) else {}
    if model is not None:
        if parts[0] not in model.model_fields:
            known = model.model_fields
            guess = nearest(parts[0], known) or f" Known keys: {', '.join(known)}"
            raise override.refusal(f"there is no key {parts[0]!r}.{guess}")
        return parts[0], 1
    if not holds_keys(annotation):
        raise override.refusal(f"nothing can stand at {parts[0]!r} there: it is not a mapping")
    inner = below(annotation, "")
    if not holds_keys(inner):
        return ".".join(parts), len(parts)
    for used in range(len(parts), 0, -1):
        if ".".join(parts[:used]) in here:
            return ".".join(parts[:used]), used
    if model_of(inner) is not None and len(parts) > 1:
        guess = nearest(parts[0], here) or f" There are: {', '.join(here) or 'none'}"
        raise override.refusal(f"the run has no {parts[0]!r} there.{guess}")
    return parts[0], 1


def _element(stages: list[Node], part: str, override: Override) -> int:
    position = _stage_named(stages, part)
    if position is None and part.isdecimal() and int(part) < len(stages):
        position = int(part)
    if position is None:
        names = _stage_names(stages)
        guess = nearest(part, names) or (f" There are: {', '.join(names)}" if names else "")
        raise override.refusal(f"there is no element {part!r} among {len(stages)}.{guess}")
    return position


def _put(node: Node | None, keys: KeyPath, value: Node, path: KeyPath = ()) -> Node:
    """Return `node` with `value` at `keys`; mappings on the way are made where they lack."""
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    new = _put(node.child(key) if node else None, rest, value, (*path, key))
    if node is not None and isinstance(key, int):
        return replace(node, value=[*node.value[:key], new, *node.value[key + 1 :]])
    if node is None or not isinstance(node.value, dict):
        return Node({key: new}, value.source)
    content = _without_replaced(node.value, {str(key): new}, path)
    return replace(node, value={**content, str(key): new})
