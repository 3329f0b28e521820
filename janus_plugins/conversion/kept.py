"""What travels beside a layout that has no place for it: extra tensors, and other layouts' text files."""

from __future__ import annotations

from pathlib import Path

from janus_plugins.conversion.description import TEXT_FILES
from janus_plugins.conversion.files import TensorFiles
from janus_plugins.conversion.keys import Layout
from janus_plugins.conversion.reading import parse_json
from janus_plugins.core.errors import CheckpointError
from janus_plugins.model.tensor_file import TensorFile

EXTRAS = "extras.safetensors"
KEPT = "extras.json"
"""Tensors by official names, and text files by layout and name."""

Kept = dict[Layout, dict[str, str]]


def open_extras(folder: Path) -> TensorFiles:
    """Open the extra tensors beside a layout that has no place for them; there may be none."""
    path = folder / EXTRAS
    return TensorFiles([TensorFile(path)] if path.is_file() else [])


def read_kept(folder: Path) -> Kept:
    """Return the text files that a conversion to this folder had no other place for."""
    path = folder / KEPT
    if not path.is_file():
        return {}
    data = parse_json(read_text(path), str(path))
    kept: Kept = {}
    for layout in ("official", "transformers"):
        files = data.get(layout, {})
        if not isinstance(files, dict) or not all(isinstance(text, str) for text in files.values()):
            raise CheckpointError(f"{path}: {layout} is no object of texts by file name")
        if files:
            kept[layout] = {name: text for name, text in files.items() if name in TEXT_FILES}
    return kept


def read_text(path: Path) -> str:
    """Return a text file's content, or raise `CheckpointError`."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; copy it again") from error
