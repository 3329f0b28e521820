"""Open a checkpoint of any layout, and answer for it in native names: plan, tokenizer, tensors, extras.

Every key is accounted for when a folder is opened, from headers alone: a tensor that is unknown, missing,
wrongly shaped or of the wrong dtype is refused by name before one is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from tokenizers import Tokenizer
from torch import Tensor

from janus_plugins.conversion import official, transformers_layout
from janus_plugins.conversion.account import (
    account_for,
    extra_entries,
    known_extras,
    places_in,
    refuse_unreadable,
)
from janus_plugins.conversion.architecture import MODALITY, Architecture, architecture_of
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
from janus_plugins.conversion.kept import KEPT, Kept, open_extras, read_kept, read_text
from janus_plugins.conversion.keys import Layout, Place, to_native
from janus_plugins.conversion.reading import parse_json
from janus_plugins.conversion.sizes import check_sizes
from janus_plugins.conversion.tokenizer_text import complete
from janus_plugins.core.errors import CheckpointError, RunFileError
from janus_plugins.core.plan import RunPlan
from janus_plugins.core.problems import listed
from janus_plugins.core.schema import RunConfig, is_folder_name
from janus_plugins.core.wiring import resolve
from janus_plugins.model.empty import compose_empty
from janus_plugins.model.native import is_native, read_plan, verify_manifest, versions_told, weight_files
from janus_plugins.model.tensor_file import Entry, TensorFile
from janus_plugins.model.unified import UnifiedModel
from janus_plugins.sequence.templates import special_tokens
from janus_plugins.sequence.tokenizers import TextTokenizer, load_tokenizer

_HEADS = {"official": "language_model.lm_head.weight", "transformers": "lm_head.weight"}


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
    said = parse_json(read_text(folder / CONFIG), str(folder / CONFIG)).get("model_type")
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
        tokenizer_json: the tokenizer's own file, with every special token.
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
        kept = next(
            (read_files(layout, files, f"{self.folder}/{KEPT}", architecture).pixels
             for layout, files in self.kept.items()),
            Pixels(architecture.vision.image_size),
        )  # fmt: skip
        encoder: Any = plan.model.understanding[MODALITY].encoder.config
        told = Pixels(architecture.vision.image_size, do_normalize=encoder.normalize)
        pixels = kept if kept.do_normalize == encoder.normalize else told
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
    texts = {name: read_text(folder / name) for name in TEXT_FILES if (folder / name).is_file()}
    files = open_weights(folder)
    description = _reader(layout)(texts, str(folder), _HEADS[layout] in files.entries)
    run = _run_of(description, folder)
    tokenizer_json = complete(texts[TOKENIZER], special_tokens(run.model))
    tokenizer = TextTokenizer(Tokenizer.from_str(tokenizer_json), special_tokens(run.model))
    plan = _plan_of(run, tokenizer, folder)
    check_sizes(description.architecture, files.entries, layout, str(folder))
    model = compose_empty(plan, tokenizer)
    extra_files = open_extras(folder) if layout == "transformers" else files
    places = places_in(model, layout)
    entries = account_for(files, places, model, str(folder), known_extras(description.architecture, layout))
    extras = extra_entries(description.architecture, extra_files, folder)
    kept = {**(read_kept(folder) if layout == "transformers" else {}), layout: texts}
    return Checkpoint(
        folder,
        layout,
        model,
        tokenizer_json,
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
    model = compose_empty(read_plan(folder), load_tokenizer(folder))
    weights = [TensorFile(path) for path in weight_files(folder)]
    files = TensorFiles(list(weights))
    shared: dict[str, str] = {}
    for file in weights:
        shared |= json.loads(file.metadata.get("shared", "{}"))
    own = model.state_dict()
    places = {name: Place((shared.get(name, name),), "same") for name in own}
    with versions_told(folder, model.plan):
        entries = account_for(files, places, model, str(folder), {})
    extra_files = open_extras(folder)
    extras = dict(extra_files.entries)
    refuse_unreadable(extras, str(folder))
    tokenizer_json = read_text(folder / TOKENIZER)
    return Checkpoint(
        folder,
        "native",
        model,
        tokenizer_json,
        None,
        entries,
        extras,
        read_kept(folder),
        files,
        extra_files,
        places,
    )


def _run_of(description: Description, folder: Path) -> RunConfig:
    """Return a run file that has this model and nothing else."""
    block: dict[str, Any] = description.architecture.model_block()
    if not description.pixels.do_normalize:
        block["understanding"][MODALITY]["encoder"]["options"]["normalize"] = False
    block["language_model"] |= {
        "tokenizer": {"type": "pretrained", "path": TOKENIZER},
        "template": description.template,
    }
    if description.tokens != DEFAULT_TOKENS:
        block["tokens"] = {"image": description.tokens.model_dump()}
    name = folder.resolve().name
    try:
        return RunConfig.model_validate({"name": name if is_folder_name(name) else "janus", "model": block})
    except ValidationError as error:
        raise CheckpointError(
            f"{folder / CONFIG} describes no model that can be built: {listed(error)}"
        ) from error


def _plan_of(run: RunConfig, tokenizer: TextTokenizer, folder: Path) -> RunPlan:
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
    return plan
