"""Hold a folder's tensors against its model's, from headers alone: every key accounted for, by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from janus_plugins.conversion.architecture import Architecture
from janus_plugins.conversion.extras import extra_shapes, rotary_shapes
from janus_plugins.conversion.files import TensorFiles
from janus_plugins.conversion.keys import Layout, Place, place_of, shapes_in
from janus_plugins.core.errors import CheckpointError
from janus_plugins.model.tensor_file import DTYPES, Entry
from janus_plugins.model.unified import UnifiedModel

FLOATS = ("F32", "F16", "BF16")
"""The dtypes that weights may have."""


def places_in(model: UnifiedModel, layout: Layout) -> dict[str, Place]:
    """Return where a foreign layout keeps each of a model's tensors; tied ones are kept once."""
    places: dict[str, Place] = {}
    for name in model.state_dict():
        place = place_of(name, layout)
        assert place is not None, f"no {layout} name for {name}"
        places[name] = place
    if model.plan.model.facts.tied:
        embedding = "language_model.model.embed_tokens.weight"
        places["language_model.text_head.output.weight"] = places[embedding]
    return places


def known_extras(architecture: Architecture, layout: Layout) -> dict[str, tuple[int, ...]]:
    """Return name and shape of the tensors beside the model that a layout's own files may hold."""
    if layout != "official":
        return {}
    return dict([*extra_shapes(architecture), *rotary_shapes(architecture)])


def account_for(
    files: TensorFiles,
    places: Mapping[str, Place],
    model: UnifiedModel,
    where: str,
    extras: Mapping[str, tuple[int, ...]],
) -> dict[str, Entry]:
    """Hold a folder's tensors against its model's, and return their entries by native name."""
    entries: dict[str, Entry] = {}
    problems: list[str] = []
    state = model.state_dict()
    for native, place in places.items():
        wanted = shapes_in(tuple(state[native].shape), place.form)
        found = [files.entries.get(name) for name in place.names]
        problems += _problems(place.names, found, wanted, state[native].is_floating_point())
        dtypes = [entry.dtype for entry in found if entry is not None]
        if len(set(dtypes)) > 1:
            problems.append(f"{' and '.join(place.names)} have dtypes {' and '.join(dtypes)}")
        elif len(dtypes) == len(found):
            entries[native] = Entry(dtypes[0], tuple(state[native].shape))
    known = {name for place in places.values() for name in place.names} | extras.keys()
    problems += [f"unknown tensor {name}" for name in sorted(files.entries.keys() - known)]
    problems += _mixed(model, entries)
    refuse(problems, where)
    return entries


def _problems(
    names: tuple[str, ...], found: list[Entry | None], wanted: tuple[int, ...], floating: bool
) -> Iterator[str]:
    for name, entry in zip(names, found, strict=True):
        if entry is None:
            yield f"missing tensor {name}"
        elif entry.shape != wanted:
            yield f"{name} has shape {list(entry.shape)}, the config asks for {list(wanted)}"
        elif floating and entry.dtype not in FLOATS:
            yield f"{name} has dtype {entry.dtype}; weights are {', '.join(FLOATS)}"
        elif entry.dtype not in DTYPES:
            yield _unreadable(name, entry)


def _unreadable(name: str, entry: Entry) -> str:
    return f"{name} has dtype {entry.dtype}; {', '.join(DTYPES)} can be read"


def _mixed(model: UnifiedModel, entries: Mapping[str, Entry]) -> Iterator[str]:
    """Yield the tensors of a part whose dtype is not that of most of the part."""
    for address in model.plan.model.addresses():
        floats = {
            name: entry.dtype
            for name, entry in entries.items()
            if name.startswith(f"{address}.") and entry.dtype in FLOATS
        }
        if len(set(floats.values())) > 1:
            usual = Counter(floats.values()).most_common(1)[0][0]
            odd = [name for name, dtype in floats.items() if dtype != usual]
            yield f"{odd[0]} has dtype {floats[odd[0]]}, the rest of {address} {usual} ({len(odd)} such)"


def refuse(problems: list[str], where: str) -> None:
    """Raise an error that names the problems, if there are any."""
    if not problems:
        return
    more = f"\n  ... and {len(problems) - 20} more" if len(problems) > 20 else ""
    raise CheckpointError(
        f"the tensors of {where} do not fit its config:\n  " + "\n  ".join(problems[:20]) + more
    )


def extra_entries(architecture: Architecture, files: TensorFiles, folder: Path) -> dict[str, Entry]:
    """Return the extra tensors of a folder by official name, their shapes and dtypes checked."""
    shapes = known_extras(architecture, "official")
    entries = {name: files.entries[name] for name in shapes if name in files.entries}
    refuse(
        [
            f"{name} has shape {list(entry.shape)}, the config asks for {list(shapes[name])}"
            for name, entry in entries.items()
            if entry.shape != shapes[name]
        ],
        str(folder),
    )
    refuse_unreadable(entries, str(folder))
    return entries


def refuse_unreadable(entries: Mapping[str, Entry], where: str) -> None:
    """Raise an error that names the tensors of a dtype that is neither read nor written, if there are any."""
    refuse([_unreadable(name, each) for name, each in entries.items() if each.dtype not in DTYPES], where)
