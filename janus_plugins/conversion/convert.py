"""Write a checkpoint in another layout: streamed, at once or not at all.

Tensors go one by one from the source's files to the destination's, so that memory holds the largest of them,
not the model. Everything is written to a folder beside the destination, which is renamed when it is complete.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from janus_plugins.conversion import official_write
from janus_plugins.conversion.architecture import Architecture
from janus_plugins.conversion.checkpoint import Checkpoint, open_checkpoint
from janus_plugins.conversion.description import dump
from janus_plugins.conversion.extras import extra_shapes
from janus_plugins.conversion.kept import EXTRAS, KEPT
from janus_plugins.conversion.keys import LAYOUTS, Layout, from_native, place_of, shapes_in
from janus_plugins.conversion.texts import foreign_texts
from janus_plugins.core.errors import CheckpointError, RunFileError
from janus_plugins.core.outputs import partial_folder
from janus_plugins.core.suggest import nearest
from janus_plugins.model import native
from janus_plugins.model.steady import unreplaced
from janus_plugins.model.tensor_file import DTYPES, Entry, TensorWriter, shard, shard_names
from janus_plugins.model.unified import UnifiedModel

_NATIVE_ONLY = ("generation.image.encoder.quantize.unused_for",)
"""State of training that no foreign layout has a place for; it is left out, and starts anew."""


@dataclass(frozen=True)
class Conversion:
    """Say what a conversion did.

    Attributes:
        source: folder that was read.
        source_layout: its layout.
        folder: folder that was written.
        layout: its layout.
        num_tensors: tensors of the model.
        num_bytes: their size.
        extras: tensors that are no part of the model, by official name.
        notes: what the user should know.
    """

    source: Path
    source_layout: Layout
    folder: Path
    layout: Layout
    num_tensors: int
    num_bytes: int
    extras: tuple[str, ...]
    notes: tuple[str, ...]


def convert(source: str | Path, target: str | Path, layout: str = "native") -> Conversion:
    """Write the checkpoint in `source` to `target` in another layout.

    Args:
        source: a native, an official or a transformers folder, recognised by content.
        target: the folder to write; it must not exist, or be empty.
        layout: "native", "official" or "transformers".

    Raises:
        RunFileError: there is no such layout.
        CheckpointError: the source is damaged, replaced meanwhile or has no place in that layout, the target
            is taken, or the disk is full. Nothing is left at the target then.
    """
    wanted = _layout(layout)
    folder = native.new_folder(target)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is not empty; choose another folder")
    place = native.located(Path(source))
    with unreplaced(place) as check:
        checkpoint = open_checkpoint(place)
        try:
            with partial_folder(folder) as partial:
                entries, extras, notes = _write(checkpoint, partial, wanted)
                check()
        except OSError as error:
            raise CheckpointError(
                f"{folder}: writing failed: {error}; make room or choose another folder, and convert again"
            ) from error
    size = sum(entry.num_bytes for entry in entries.values())
    return Conversion(
        checkpoint.folder, checkpoint.layout, folder, wanted, len(entries), size, tuple(extras), notes
    )


def _layout(name: str) -> Layout:
    for layout in LAYOUTS:
        if layout == name:
            return layout
    raise RunFileError(f"layout {name!r} is not one of {', '.join(LAYOUTS)}.{nearest(name, LAYOUTS)}")


Written = tuple[dict[str, Entry], list[str], tuple[str, ...]]
"""Tensors by the target's names, names of extras, and notes."""


def _write(checkpoint: Checkpoint, folder: Path, layout: Layout) -> Written:
    if layout == "native":
        return _write_native(checkpoint, folder)
    description = checkpoint.description()
    items = list(_items(checkpoint, layout))
    entries = {name: entry for name, entry, _ in items}
    getters = {name: get for name, _, get in items}
    notes = list(checkpoint.notes)
    if layout == "official":
        notes += _add_extras(checkpoint, description.architecture, entries, getters)
    notes += _write_weights(folder, entries, getters, {"format": "pt"}, index=True)
    for name, text in foreign_texts(checkpoint, description, layout).items():
        _write_text(folder / name, text)
    if layout == "transformers":
        _write_extras(checkpoint, folder, layout)
    return entries, list(checkpoint.extras), tuple(notes)


def _write_native(checkpoint: Checkpoint, folder: Path) -> Written:
    shared = _shared(checkpoint.model)
    entries = {name: entry for name, entry in checkpoint.entries.items() if name not in shared}
    getters = {name: _getter(checkpoint, name) for name in entries}
    metadata = {"format": "pt", "shared": json.dumps(shared)}
    native.write_texts(checkpoint.model, folder)
    notes = _write_weights(folder, entries, getters, metadata, index=False)
    extras = _write_extras(checkpoint, folder, "native")
    native.write_manifest(folder, extras)
    return entries, list(checkpoint.extras), (*checkpoint.notes, *notes)


def _shared(model: UnifiedModel) -> dict[str, str]:
    """Return the names of weights that are another's, such as a tied head's, and whose they are."""
    first: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    names = {name: first.setdefault(id(each), name) for name, each in state.items()}
    return {name: other for name, other in names.items() if name != other}


def _getter(checkpoint: Checkpoint, name: str) -> Callable[[], Tensor]:
    return lambda: checkpoint.get(name)


Item = tuple[str, Entry, Callable[[], Tensor]]


def _items(checkpoint: Checkpoint, layout: Layout) -> Iterator[Item]:
    """Yield every tensor of a foreign layout: name, entry, and how to get it."""
    tied = checkpoint.model.plan.model.facts.tied
    for name, entry in checkpoint.entries.items():
        place = place_of(name, layout)
        if name in _NATIVE_ONLY or (tied and name == "language_model.text_head.output.weight"):
            continue
        if place is None:
            raise CheckpointError(
                f"{name} has no place in the {layout} layout; keep this model in the native one"
            )
        shape = shapes_in(entry.shape, place.form)
        for index, foreign in enumerate(place.names):
            yield foreign, Entry(entry.dtype, shape), _part(checkpoint, name, place.form, index)


def _part(checkpoint: Checkpoint, name: str, form: str, index: int) -> Callable[[], Tensor]:
    return lambda: from_native(checkpoint.get(name), form)[index]  # type: ignore[arg-type]


def _add_extras(
    checkpoint: Checkpoint,
    architecture: Architecture,
    entries: dict[str, Entry],
    getters: dict[str, Callable[[], Tensor]],
) -> list[str]:
    """Put the extras into an official file; zeros where the model never had what the official code builds.

    SigLIP's pooling head and the record of codes are never run, but the official code expects them.
    """
    for name, entry in checkpoint.extras.items():
        entries[name], getters[name] = entry, lambda name=name: checkpoint.get_extra(name)  # type: ignore[misc]
    missing = {name: shape for name, shape in extra_shapes(architecture) if name not in checkpoint.extras}
    dtype = entries["vision_model.vision_tower.norm.weight"].dtype
    for name, shape in missing.items():
        entries[name] = Entry(dtype, shape)
        getters[name] = lambda shape=shape: torch.zeros(shape, dtype=DTYPES[dtype], device="cpu")  # type: ignore[misc]
    notes = []
    if missing:
        notes.append(
            f"{len(missing)} tensors that the official code builds and never runs (SigLIP's pooling head, "
            "the record of codes) are written as zeros: this model has none"
        )
    if not official_write.is_standard(architecture):
        notes.append(
            "the official code fixes the sizes of SigLIP and VQ by name and cannot build this model's; they "
            "are written beside the names, and this package reads them"
        )
    return notes


def _write_weights(
    folder: Path,
    entries: dict[str, Entry],
    getters: dict[str, Callable[[], Tensor]],
    metadata: dict[str, str],
    index: bool,
) -> list[str]:
    """Write the tensors; return a note if some are broken."""
    broken: list[str] = []
    shards = shard(entries, native.SHARD_BYTES)
    names = list(shard_names(len(shards)))
    for name, content in zip(names, shards, strict=True):
        with TensorWriter(folder / name, content, metadata) as writer:
            for key in content:
                tensor = getters[key]()
                writer.write(key, tensor)
                broken += [] if _is_finite(tensor) else [key]
    if index and len(names) > 1:
        total = sum(entry.num_bytes for entry in entries.values())
        listed = {key: name for name, content in zip(names, shards, strict=True) for key in content}
        text = dump({"metadata": {"total_size": total}, "weight_map": listed})
        _write_text(folder / "model.safetensors.index.json", text)
    return _note_of(broken)


def _is_finite(tensor: Tensor) -> bool:
    """Say whether no value is NaN or infinite, in one pass and without a copy."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    return all(math.isfinite(float(each)) for each in tensor.aminmax())


def _note_of(broken: list[str]) -> list[str]:
    if not broken:
        return []
    more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
    return [
        f"NaN or infinite values in {broken[0]}{more}, written as they are: training damaged the model, "
        "or a dtype that is too small for it did"
    ]


def _write_extras(checkpoint: Checkpoint, folder: Path, layout: Layout) -> list[str]:
    """Keep what the layout has no place for; return the names of the files."""
    files = []
    if checkpoint.extras:
        with TensorWriter(folder / EXTRAS, checkpoint.extras, {"format": "pt"}) as writer:
            for name in checkpoint.extras:
                writer.write(name, checkpoint.get_extra(name))
        files.append(EXTRAS)
    kept = {name: texts for name, texts in checkpoint.kept.items() if name != layout}
    if kept:
        _write_text(folder / KEPT, dump(kept))
        files.append(KEPT)
    return files


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
