"""How a component's options are called in a run file, and how those of a checkpoint are laid under them.

A field of pydantic's may be read by other names than its own (aliases). Knows nothing of components.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import AliasChoices, BaseModel

from janus_plugins.core.frame import below, model_of
from janus_plugins.core.suggest import nearest


def spellings(config: type[BaseModel], name: str) -> tuple[str, ...]:
    """Return what a field is called in a run file, aliases first; its own name where it has none."""
    alias = config.model_fields[name].validation_alias
    choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
    aliases = tuple(each for each in choices if isinstance(each, str))
    how = config.model_config
    by_name = how.get("validate_by_name") or how.get("populate_by_name") or not aliases
    return tuple(dict.fromkeys((*aliases, *((name,) if by_name else ()))))


def unknown_option(component: str, config: type[BaseModel], location: Sequence[str | int]) -> str:
    """Say of a key that no option reads what was meant: one of another spelling, or one that is near.

    Args:
        component: its name.
        config: the class of its options.
        location: where the key stands in them.
    """
    *above, last = map(str, location)
    model: type[BaseModel] | None = config
    for key in above:
        model = model_of(below(model, _field(model, key))) if model else None
    names = (
        spellings(model, _field(model, last)) if model and _field(model, last) in model.model_fields else ()
    )
    others = " or ".join(repr(one) for one in names if one != last)
    if last in names:
        return f"the same option as {others}; give one of them"
    if others:
        return f"{component} calls this option {others}"
    known = [one for name in model.model_fields for one in spellings(model, name)] if model else ()
    return f"{component} has no such option.{nearest(last, known)}"


def _field(config: type[BaseModel], key: str) -> str:
    """Return the field that a key of a run file means."""
    return next((name for name in config.model_fields if key in spellings(config, name)), key)


def laid_over(
    then: Mapping[str, Any], today: Mapping[str, Any], given: Mapping[str, Any], config: object
) -> dict[str, Any]:
    """Return options that are given, and of others what they were then where that is not what they are today.

    Args:
        then: all options of then, by the fields' names; those that there are none of today are left out.
        today: all options of today, by the fields' names.
        given: as in a run file.
        config: the options of today, validated: a model, whose fields may have aliases, or anything else.
    """
    laid = dict(given)
    for name, value in then.items():
        if name not in today or today[name] == value:
            continue
        names = _spelt(config, name)
        spelling = next((one for one in names if one in given), None)
        if spelling is None:
            laid[name] = value
        elif all(isinstance(one, dict) for one in (value, today[name], given[spelling])):
            inner = getattr(config, name, None)
            laid[spelling] = laid_over(value, today[name], given[spelling], inner)
    return laid


def _spelt(config: object, name: str) -> tuple[str, ...]:
    if isinstance(config, BaseModel) and name in type(config).model_fields:
        return (*spellings(type(config), name), name)
    return (name,)


def unlike(then: Mapping[str, Any], today: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Yield each option of then that is another today, or none, and what today's do; later ones are none."""
    for name, value in then.items():
        path, now = above + name, today.get(name)
        if name not in today:
            yield f"{path}: {value!r}", "does not have"
        elif isinstance(value, dict) and isinstance(now, dict):
            yield from unlike(value, now, f"{path}.")
        elif value != now:
            yield f"{path}: {value!r}", f"makes {now!r}"
