"""Ask the run file's schema what may stand at a place, without validating anything.

Walks pydantic annotations: models, mappings, tuples, optional values and unions of them.
"""

from __future__ import annotations

import types
from dataclasses import replace
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from janus_plugins.core.nodes import Node


def members(annotation: Any) -> tuple[Any, ...]:
    """Return the alternatives of an annotation: `int | None` gives (int, NoneType)."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return members(get_args(annotation)[0])
    if origin is Union or origin is types.UnionType:
        return tuple(inner for each in get_args(annotation) for inner in members(each))
    return (annotation,)


def is_union(annotation: Any) -> bool:
    """Answer whether there are alternatives besides null."""
    return len([each for each in members(annotation) if each is not types.NoneType]) > 1


def allows_null(annotation: Any) -> bool:
    """Answer whether null is a value there, rather than the absence of one."""
    return any(each is Any or each is types.NoneType for each in members(annotation))


def model_of(annotation: Any) -> type[BaseModel] | None:
    """Return the model that may stand there, if any."""
    for each in members(annotation):
        if isinstance(each, type) and issubclass(each, BaseModel):
            return each
    return None


def below(annotation: Any, key: str | int) -> Any:
    """Return what may stand under `key`, or None where nothing may."""
    for each in members(annotation):
        found = _inside(each, key)
        if found is not None:
            return found
    return None


def holds_keys(annotation: Any) -> bool:
    """Answer whether a mapping may stand there."""
    return model_of(annotation) is not None or any(
        each is Any or get_origin(each) is dict for each in members(annotation)
    )


def names_entries(annotation: Any, key: str) -> bool:
    """Answer whether `key` is the user's own word there, and null under it can only remove an entry."""
    inner = below(annotation, key)
    return inner is not None and model_of(annotation) is None and not allows_null(inner)


def without_nulls(node: Node, annotation: Any) -> Node:
    """Drop every null that stands for absence: where null is no value and nothing is required."""
    if isinstance(node.value, dict):
        kept = {
            key: without_nulls(child, below(annotation, key))
            for key, child in node.value.items()
            if not _means_absence(child, annotation, key)
        }
        return replace(node, value=kept)
    if isinstance(node.value, list):
        pairs = [(child, below(annotation, index)) for index, child in enumerate(node.value)]
        absent = [child.value is None and model_of(inner) is not None for child, inner in pairs]
        kept_items = [without_nulls(*pair) for pair, gone in zip(pairs, absent, strict=True) if not gone]
        return replace(node, value=kept_items)
    return node


def _inside(member: Any, key: str | int) -> Any:
    if member is Any:
        return Any
    if isinstance(member, type) and issubclass(member, BaseModel):
        field = member.model_fields.get(str(key))
        return field.annotation if field else None
    origin, arguments = get_origin(member), get_args(member)
    if origin is dict:
        return arguments[1]
    if origin is tuple and isinstance(key, int):
        if arguments[-1] is Ellipsis:
            return arguments[0]
        return arguments[key] if key < len(arguments) else None
    return None


def _means_absence(child: Node, annotation: Any, key: str) -> bool:
    inner = below(annotation, key)
    if child.value is not None or inner is None or allows_null(inner):
        return False
    model = model_of(annotation)
    return model is None or not model.model_fields[key].is_required()
