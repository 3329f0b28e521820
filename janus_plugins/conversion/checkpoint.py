"""Open a checkpoint of any layout, and answer for it in native names: plan, tokenizer, tensors, extras.

Every key is accounted for when a folder is opened, from headers alone: a tensor that is unknown, missing,
wrongly shaped or of the wrong dtype is refused by name before one is read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from janus_plugins.conversion import official, transformers_layout
from janus_plugins.conversion.architecture import Architecture, architecture_of
from janus_plugins.conversion.description import (
    CONFIG,
    DEFAULT_TOKENS,
    TEXT_FILES,
    TOKENIZER,
    Description,
    Files,
    Pixels,
)
from janus_plugins.conversion.files import TensorFiles, open_weights
from janus_plugins.conversion.keys import Layout, Place, place_of, shapes_in, to_native
from janus_plugins.conversion.reading import parse_json
from janus_plugins.core.errors import CheckpointError, RunFileError
from janus_plugins.core.runfile import load_run
from janus_plugins.core.schema import RunConfig
from janus_plugins.core.wiring import resolve
from janus_plugins.model.empty import compose_empty
from janus_plugins.model.native import is_native, verify_manifest
from janus_plugins.model.tensor_file import Entry, TensorFile
from janus_plugins.model.unified import UnifiedModel
from janus_plugins.sequence.templates import special_tokens
from janus_plugins.sequence.tokenizers import TextTokenizer, load_tokenizer

EXTRAS = "extras.safetensors"
KEPT = "extras.json"
"""What a layout has no place for: tensors by official names, and other layouts' text files by layout."""

_FLOATS = ("F32", "F16", "BF16")
_HEADS = {"official": "language_model.lm_head.weight", "transformers": "lm_head.weight"}
Kept = dict[Layout, dict[str, str]]


def recognise(folder: Path) -> Layout:
    """Tell a folder's layout by its content.

    Raises:
        CheckpointError: it is no folder, or holds no checkpoint of a known layout.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give the folder of a trained model")
    if is_native(folder):
        return "native"
    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            f"{folder} holds no native checkpoint (manifest.json and config.yaml), and no {CONFIG}"
        )
    said = parse_json(_read_text(folder / CONFIG), str(folder / CONFIG)).get("model_type")
    if said == official.MODEL_TYPE:
        return "official"
    if said == transformers_layout.MODEL_TYPE:
        return "transformers"
    raise CheckpointError(
        f"{folder / CONFIG}: model_type is {said!r}; {official.MODEL_TYPE!r} (official Janus) and "
        f"{transformers_layout.MODEL_TYPE!r} (transformers) can be read"
    )


@dataclass
class Checkpoint:
    """Hold an opened checkpoint.

    Attributes:
        folder: where it is.
        layout: how it is kept there.
        model: its model, without weights.
        tokenizer_json: the tokenizer's own file.
        description: what a foreign layout says of it; of a native checkpoint None until it is asked for.
        entries: dtype and shape of every tensor, by native name.
        extras: the same of what is no part of the model, by official name.
        kept: text files of foreign layouts that it came from.
    """

    folder: Path
    layout: Layout
    model: UnifiedModel
    tokenizer_json: str
    described: Description | None
    entries: dict[str, Entry]
    extras: dict[str, Entry]
    kept: Kept
    _files: TensorFiles
    _extra_files: TensorFiles
    _places: Mapping[str, Place]

    def get(self, native: str) -> Tensor:
        """Return one tensor by its native name."""
        place = self._places[native]
        return to_native([self._files.get(name) for name in place.names], place.form)

    def get_extra(self, name: str) -> Tensor:
        """Return one extra tensor by its official name."""
        return self._extra_files.get(name)

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what a user should know about how it was read."""
        return self.described.notes if self.described else ()

    def description(self) -> Description:
        """Return what a foreign layout must say of the model.

        Raises:
            CheckpointError: the model has parts that foreign layouts have no place for.
        """
        if self.described is not None:
            return self.described
        plan = self.model.plan
        architecture = architecture_of(plan)
        block = plan.run.model
        pixels = next(
            (read_files(layout, files, f"{self.folder}/{KEPT}", architecture).pixels
             for layout, files in self.kept.items()),
            Pixels(architecture.vision.image_size),
        )  # fmt: skip
        template = block.language_model.template
        return Description(architecture, template, block.item_tokens("image"), pixels)


def read_files(layout: Layout, files: Files, where: str, architecture: Architecture) -> Description:
    """Return what kept text files say of a model whose sizes are known."""
    return _reader(layout)(files, where, not architecture.llama.tie)


def _reader(layout: Layout) -> Callable[[Files, str, bool], Description]:
    return official.read if layout == "official" else transformers_layout.read


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a folder of any layout.

    Raises:
        CheckpointError: it cannot be recognised, is damaged, or its tensors do not fit its config.
        PluginError: a native checkpoint needs a plugin that is not installed.
    """
    layout = recognise(folder)
    return _open_native(folder) if layout == "native" else _open_foreign(folder, layout)


def _open_foreign(folder: Path, layout: Layout) -> Checkpoint:
    texts = {name: _read_text(folder / name) for name in TEXT_FILES if (folder / name).is_file()}
    files = open_weights(folder)
    description = _reader(layout)(texts, str(folder), _HEADS[layout] in files.entries)
    run = _run_of(description, folder)
    model = _empty_model(run, texts[TOKENIZER], folder)
    extra_files = _open_extras(folder) if layout == "transformers" else files
    places = _places(model, layout)
    entries = _account(files, places, model, str(folder), _known_extras(description.architecture, layout))
    extras = _extra_entries(description.architecture, extra_files, folder)
    kept = {**(_read_kept(folder) if layout == "transformers" else {}), layout: texts}
    return Checkpoint(
        folder,
        layout,
        model,
        texts[TOKENIZER],
        description,
        entries,
        extras,
        kept,
        files,
        extra_files,
        places,
    )


def _open_native(folder: Path) -> Checkpoint:
    verify_manifest(folder)
    run = load_run(folder / "config.yaml")
    model = compose_empty(resolve(run), load_tokenizer(folder))
    weights = [TensorFile(path) for path in sorted(folder.glob("model*.safetensors"))]
    files = TensorFiles(list(weights))
    shared: dict[str, str] = {}
    for file in weights:
        shared |= json.loads(file.metadata.get("shared", "{}"))
    own = model.state_dict()
    places = {name: Place((shared.get(name, name),), "same") for name in own}
    entries = _account(files, places, model, str(folder), {})
    extra_files = _open_extras(folder)
    extras = dict(extra_files.entries)
    tokenizer_json = _read_text(folder / TOKENIZER)
    return Checkpoint(
        folder,
        "native",
        model,
        tokenizer_json,
        None,
        entries,
        extras,
        _read_kept(folder),
        files,
        extra_files,
        places,
    )


def _run_of(description: Description, folder: Path) -> RunConfig:
    """Return a run file that has this model and nothing else."""
    block: dict[str, Any] = description.architecture.model_block()
    block["language_model"] |= {
        "tokenizer": {"type": "pretrained", "path": TOKENIZER},
        "template": description.template,
    }
    if description.tokens != DEFAULT_TOKENS:
        block["tokens"] = {"image": description.tokens.model_dump()}
    try:
        return RunConfig.model_validate({"name": folder.resolve().name or "janus", "model": block})
    except ValidationError as error:
        raise CheckpointError(f"{folder / CONFIG} describes no model that can be built: {error}") from error


def _empty_model(run: RunConfig, tokenizer_json: str, folder: Path) -> UnifiedModel:
    from tokenizers import Tokenizer

    tokenizer = TextTokenizer(Tokenizer.from_str(tokenizer_json), special_tokens(run.model))
    try:
        plan = resolve(run)
    except RunFileError as error:
        raise CheckpointError(f"{folder / CONFIG} describes no model that can be built: {error}") from error
    room = plan.model.facts.vocab_size
    if len(tokenizer) > room:
        raise CheckpointError(
            f"{folder}: the tokenizer has {len(tokenizer)} entries, the language model embeds {room}; "
            f"is {TOKENIZER} this model's own?"
        )
    return compose_empty(plan, tokenizer)


def _places(model: UnifiedModel, layout: Layout) -> dict[str, Place]:
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


def _known_extras(architecture: Architecture, layout: Layout) -> dict[str, tuple[int, ...]]:
    if layout != "official":
        return {}
    return dict([*official.extra_shapes(architecture), *official.rotary_shapes(architecture)])


def _account(
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
        if all(entry is not None for entry in found):
            dtype = found[0].dtype  # type: ignore[union-attr]
            entries[native] = Entry(dtype, tuple(state[native].shape))
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
        elif floating and entry.dtype not in _FLOATS:
            yield f"{name} has dtype {entry.dtype}; weights are {', '.join(_FLOATS)}"


def _mixed(model: UnifiedModel, entries: Mapping[str, Entry]) -> Iterator[str]:
    """Yield the tensors of a part whose dtype is not that of most of the part."""
    for address in model.plan.model.addresses():
        floats = {
            name: entry.dtype
            for name, entry in entries.items()
            if name.startswith(f"{address}.") and entry.dtype in _FLOATS
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


def _extra_entries(architecture: Architecture, files: TensorFiles, folder: Path) -> dict[str, Entry]:
    shapes = _known_extras(architecture, "official")
    entries = {name: files.entries[name] for name in shapes if name in files.entries}
    refuse(
        [
            f"{name} has shape {list(entry.shape)}, the config asks for {list(shapes[name])}"
            for name, entry in entries.items()
            if entry.shape != shapes[name]
        ],
        str(folder),
    )
    return entries


def _open_extras(folder: Path) -> TensorFiles:
    path = folder / EXTRAS
    return TensorFiles([TensorFile(path)] if path.is_file() else [])


def _read_kept(folder: Path) -> Kept:
    """Return the text files that a conversion to this folder had no other place for."""
    path = folder / KEPT
    if not path.is_file():
        return {}
    data = parse_json(_read_text(path), str(path))
    kept: Kept = {}
    for layout in ("official", "transformers"):
        files = data.get(layout, {})
        if not isinstance(files, dict) or not all(isinstance(text, str) for text in files.values()):
            raise CheckpointError(f"{path}: {layout} is no object of texts by file name")
        if files:
            kept[layout] = {name: text for name, text in files.items() if name in TEXT_FILES}
    return kept


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; copy it again") from error
