"""Say what is wrong with a run file in one line a problem: `file:line: path: message`.

Rewrites pydantic's errors, and finds what pydantic lets pass: a boolean where a number is meant, and
a `use:` that names code instead of a component.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from janus_plugins.core.frame import below, is_union, members, model_of
from janus_plugins.core.nodes import KeyPath, Node
from janus_plugins.core.options import unknown_option
from janus_plugins.core.schema import TWICE, Named, RunConfig, Use
from janus_plugins.core.suggest import nearest

_COMPONENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*/)?[a-z0-9]+(-[a-z0-9]+)*")


def validation_problems(error: ValidationError, root: Node) -> Iterator[str]:
    """Yield a line for each of pydantic's errors on the run file `root`."""
    for each in error.errors(include_url=False):
        path, meant = _follow(root, each["loc"])
        if each["type"] == TWICE:
            path = (each["ctx"]["what"], each["ctx"]["position"])
        if meant:
            yield _line(root, path, _message(each, path))


def own_problems(root: Node) -> Iterator[str]:
    """Yield a line for each mistake that pydantic would let pass."""
    yield from _walk(root, root, (), RunConfig)


def _walk(root: Node, node: Node, path: KeyPath, annotation: Any) -> Iterator[str]:
    kinds = members(annotation)
    if isinstance(node.value, bool) and bool not in kinds and (int in kinds or float in kinds):
        yield _line(root, path, f"should be a number (got {str(node.value).lower()})")
    model = model_of(annotation)
    use = node.child("use") if model is not None and issubclass(model, Named) else None
    if use is not None and isinstance(use.value, str) and not _COMPONENT.fullmatch(use.value):
        yield _line(root, (*path, "use"), _not_a_component(use.value))
    inside: Any = ()
    if isinstance(node.value, dict):
        inside = node.value.items()
    elif isinstance(node.value, list):
        inside = enumerate(node.value)
    for key, child in inside:
        yield from _walk(root, child, (*path, key), below(annotation, key))


def _not_a_component(use: str) -> str:
    what = "is not a component's name"
    if ":" in use or "." in use:
        what = "looks like an import path; a run file names components and cannot load code"
    return f"{use!r} {what}. Write e.g. 'mlp' or 'janus-plugins/mlp'; `janus-plugins plugins` lists the names"


def _follow(root: Node, location: tuple[str | int, ...]) -> tuple[KeyPath, bool]:
    """Return the path of an error's location, and whether it is about what the user meant.

    Pydantic reports every branch of a union and puts its name into the location, as it puts "[key]"
    for a mapping's key; neither is a key of the file.
    """
    path: list[str | int] = []
    annotation: Any = RunConfig
    meant = True
    for key in location:
        inner = below(annotation, key)
        if key == "[key]":
            break
        if inner is None and is_union(annotation):
            models = {each.__name__: each for each in members(annotation) if model_of(each)}
            meant = isinstance(root.nearest(tuple(path)).value, dict) == (key in models)
            annotation = models.get(key)
            continue
        path.append(key)
        annotation = inner
    return tuple(path), meant


def _message(error: Mapping[str, Any], path: KeyPath) -> str:
    kind, given = error["type"], error["input"]
    if kind == "extra_forbidden":
        return _unknown_key(path)
    message = "should be a mapping" if kind == "model_type" else _said(error)
    if kind == "model_type" and isinstance(given, str) and _COMPONENT.fullmatch(given):
        block = _block_at(path)
        if block is not None and issubclass(block, Use):
            message += f": {{use: {given}}}"
    return message + _got(error)


def worded(error: Mapping[str, Any]) -> str:
    """Return one of pydantic's errors in our words, with the value that was given."""
    return _said(error) + _got(error)


def option_worded(error: Mapping[str, Any], component: str, config: type[BaseModel]) -> str:
    """Return one of pydantic's errors on a component's options, with the option that was meant."""
    if error["type"] == "extra_forbidden":
        return unknown_option(component, config, error["loc"])
    return worded(error)


def listed(error: ValidationError, say: Callable[[Mapping[str, Any]], str] = worded) -> str:
    """Return pydantic's errors on what is no run file in one line: "path: problem; path: problem"."""
    each = error.errors(include_url=False)
    return "; ".join(": ".join(filter(None, (".".join(map(str, one["loc"])), say(one)))) for one in each)


def _said(error: Mapping[str, Any]) -> str:
    if error["type"] == "missing":
        return "is needed, but not given"
    return str(error["msg"]).removeprefix("Input ").removeprefix("Value error, ")


def _got(error: Mapping[str, Any]) -> str:
    """Return " (got ...)" where there is one value to show, and the message does not speak of it."""
    kind, given = error["type"], error["input"]
    if kind in ("missing", "value_error") or not (isinstance(given, (str, int, float)) or given is None):
        return ""
    shown = "nothing" if given is None else repr(given)
    words = re.findall(r"'([^']*)'", error["msg"]) if kind == "literal_error" else ()
    return f" (got {shown:.60}).{nearest(str(given), words)}" if words else f" (got {shown:.60})"


def _block_at(path: KeyPath) -> type[BaseModel] | None:
    """Return the block that stands at a path, or None where none does."""
    annotation: Any = RunConfig
    for key in path:
        annotation = below(annotation, key)
    return model_of(annotation)


def _unknown_key(path: KeyPath) -> str:
    """Say that a key is unknown, with the nearest one that may stand there."""
    model = _block_at(path[:-1])
    known = list(model.model_fields) if model else []
    guess = nearest(str(path[-1]), known)
    if not guess and model is not None and issubclass(model, Named):
        guess = " A component's own settings go under 'options'."
    return f"unknown key.{guess or ' Known keys: ' + ', '.join(known)}"


def _line(root: Node, path: KeyPath, message: str) -> str:
    place, shown = root.nearest(path).where, _spell(root, path)
    return f"{place}: {shown}: {message}" if shown else f"{place}: {message}"


def _spell(root: Node, path: KeyPath) -> str:
    """Write a path as `--set` takes it: stages by name."""
    words, node = [], root
    for key in path:
        node = node.child(key) or Node(None, "")
        name = node.child("name") if isinstance(key, int) else None
        words.append(str(key if name is None else name.value))
    return ".".join(words)
