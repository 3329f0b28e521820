"""The JSON Schema of run files, with the options of every installed component, for editors."""

from __future__ import annotations

from typing import Any

from janus_plugins.core.catalogue import Catalogue, catalogue
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

_USED = {kind for fields in _PLACES.values() for kind in fields.values()}


def run_schema(found: Catalogue | None = None) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a run file."""
    found = found or catalogue()
    schema = RunConfig.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["properties"]["base"] = {"type": "string", "description": "a run file that this one overrides"}
    schema["title"] = "janus-plugins run file"
    definitions = schema["$defs"]
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
    return schema


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
        options = entry.spec.config.model_json_schema(ref_template=f"#/$defs/{label}.{{model}}")
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
