"""The JSON Schema of run files, with the options of every installed component, for editors."""

from __future__ import annotations

import logging
from typing import Any

from pydantic.errors import PydanticUserError
from pydantic.json_schema import GenerateJsonSchema

from janus_plugins.core.catalogue import Catalogue, CatalogueEntry, catalogue
from janus_plugins.core.kinds import Kind
from janus_plugins.core.schema import RunConfig

_PLACES: dict[str, dict[str, Kind]] = {
    "UnderstandingBlock": {"encoder": Kind.UNDERSTANDING_ENCODER, "adapter": Kind.ADAPTER},
    "GenerationBlock": {"encoder": Kind.GENERATION_ENCODER, "adapter": Kind.ADAPTER, "head": Kind.HEAD},
    "LanguageModelBlock": {"head": Kind.HEAD},
}
"""Which kind of component each field of the frame names."""

_BLOCKS = {
    "LanguageModelBlock": (Kind.LANGUAGE_MODEL, "use"),
    "DataBlock": (Kind.SOURCE, "use"),
    "EvaluationBlock": (Kind.EVALUATION_TASK, "task"),
    "CallbackBlock": (Kind.CALLBACK, "use"),
}
"""Blocks that name a component themselves, and the key under which they do."""

_OVER = "over."
"""Before the name of what may stand in a file with a base."""

_log = logging.getLogger(__name__)

_USED = {kind for fields in _PLACES.values() for kind in fields.values()}


def run_schema(found: Catalogue | None = None) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a run file: a whole one, or what overrides a base."""
    found = found or catalogue()
    whole = RunConfig.model_json_schema()
    definitions = whole.pop("$defs")
    for kind in (each for each in Kind if each in _USED):
        definitions[f"Use.{kind}"] = _use(definitions, found, kind)
    for block, fields in _PLACES.items():
        for field, kind in fields.items():
            definitions[block]["properties"][field] = {"$ref": f"#/$defs/Use.{kind}"}
    for block, (kind, key) in _BLOCKS.items():
        definitions[block]["properties"][key] = {"enum": _spellings(found, kind)}
        definitions[block]["allOf"] = _choices(definitions, found, kind, key)
    _allow_share(definitions)
    definitions.pop("Use", None)
    parts = {f"{_OVER}{name}": _overriding(part) for name, part in definitions.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "janus-plugins run file",
        "$defs": {**definitions, **parts, "whole": whole, "over": _over(whole)},
        "if": {"required": ["base"]},
        "then": {"$ref": "#/$defs/over"},
        "else": {"$ref": "#/$defs/whole"},
    }


def _over(whole: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a file with a base, in which stages may be overridden by their names."""
    over: dict[str, Any] = _overriding(whole)
    base = {"type": "string", "description": "a run file that this one overrides"}
    by_name = {"additionalProperties": {"$ref": f"#/$defs/{_OVER}StageBlock"}, "type": "object"}
    stages = {"anyOf": [by_name, whole["properties"]["stages"]], "title": "Stages"}
    over["properties"] = {"base": base, **over["properties"], "stages": stages}
    return over


def _overriding(schema: Any) -> Any:
    """Return what may stand over something of a schema: a part of it, and null, which removes.

    A list replaces another one, and is whole.
    """
    if not isinstance(schema, dict):
        return [_overriding(each) for each in schema] if isinstance(schema, list) else schema
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties":
            made[key] = {name: _or_null(each) for name, each in value.items()}
        elif key == "additionalProperties" and isinstance(value, dict):
            made[key] = _or_null(value)
        elif key == "$ref":
            made[key] = value.replace("#/$defs/", f"#/$defs/{_OVER}")
        elif key in ("items", "prefixItems", "if", "default", "enum", "const", "discriminator"):
            made[key] = value
        elif key not in ("required", "oneOf", "minProperties"):
            made[key] = _overriding(value)
    return made


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    over: dict[str, Any] = _overriding(schema)
    told: dict[str, Any] = {key: over.pop(key) for key in ("title", "description", "default") if key in over}
    return {"anyOf": [over, {"type": "null"}], **told} if over else told


def _allow_share(definitions: dict[str, Any]) -> None:
    """Let an understanding encoder be a share of another part instead of a `use`."""
    frame, block = definitions.pop("EncoderUse"), definitions[f"Use.{Kind.UNDERSTANDING_ENCODER}"]
    named = block["properties"]["use"]
    block["properties"] = {**frame["properties"], "use": {"anyOf": [named, {"type": "null"}]}}
    block.pop("required", None)
    given = [{"properties": {key: {"type": "string"}}, "required": [key]} for key in ("use", "share")]
    block["oneOf"] = given


def _spellings(found: Catalogue, kind: Kind) -> list[str]:
    entries = [entry for entry in found.entries() if entry.spec.kind == kind]
    names = {entry.spec.name for entry in entries}
    return sorted(names | {f"{entry.owner.distribution}/{entry.spec.name}" for entry in entries})


def _use(definitions: dict[str, Any], found: Catalogue, kind: Kind) -> dict[str, Any]:
    frame = definitions["Use"]
    properties = {**frame["properties"], "use": {"enum": _spellings(found, kind)}}
    return {
        **frame,
        "title": f"Use.{kind}",
        "properties": properties,
        "allOf": _choices(definitions, found, kind),
    }


def _choices(
    definitions: dict[str, Any], found: Catalogue, kind: Kind, key: str = "use"
) -> list[dict[str, Any]]:
    choices = []
    for entry in sorted(found.entries(), key=lambda one: (one.spec.name, one.owner.distribution)):
        if entry.spec.kind != kind:
            continue
        label = f"options.{kind}.{entry.owner.distribution}.{entry.spec.name}"
        options = _options(entry, label)
        for name, inner in options.pop("$defs", {}).items():
            definitions[f"{label}.{name}"] = inner
        definitions[label] = options
        spellings = [entry.spec.name, f"{entry.owner.distribution}/{entry.spec.name}"]
        choices.append(
            {
                "if": {"properties": {key: {"enum": spellings}}, "required": [key]},
                "then": {"properties": {"options": {"$ref": f"#/$defs/{label}"}}},
            }
        )
    return choices


class _AnythingElse(GenerateJsonSchema):
    """Let an option be anything where JSON has no word for what it is, such as a class of a plugin's own."""

    def emit_warning(self, kind: Any, detail: str) -> None:
        """Stay silent: a default that JSON has no word for is left out, and so is one of several choices."""

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> dict[str, Any]:
        """Return what lets anything pass."""
        return {}


def _options(entry: CatalogueEntry, label: str) -> dict[str, Any]:
    """Return the schema of a component's options; of broken ones, which ends nobody else's, that of any."""
    config = entry.spec.config
    try:
        return config.model_json_schema(
            ref_template=f"#/$defs/{label}.{{model}}", schema_generator=_AnythingElse
        )
    except PydanticUserError as error:
        reason = str(error).splitlines()[0]
        _log.warning("%s: any options pass, its own are broken: %s", entry.full_name, reason)
        return {"type": "object"}
