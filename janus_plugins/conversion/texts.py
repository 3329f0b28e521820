"""The text files of a foreign folder: those that a model came with while they still hold, else new ones."""

from __future__ import annotations

from collections.abc import Iterator

from janus_plugins.conversion import official_write, transformers_write
from janus_plugins.conversion.checkpoint import Checkpoint, read_files
from janus_plugins.conversion.description import CONFIG, TOKENIZER, Description, Files
from janus_plugins.conversion.kept import KEPT
from janus_plugins.conversion.keys import Layout
from janus_plugins.conversion.reading import parse_json
from janus_plugins.conversion.tokenizer_text import complete, same_tokenizer
from janus_plugins.model.tensor_file import DTYPES
from janus_plugins.sequence.templates import special_tokens

_LANGUAGE = {"official": "language_config", "transformers": "text_config"}


def foreign_texts(checkpoint: Checkpoint, description: Description, layout: Layout) -> dict[str, str]:
    """Return the text files of a foreign folder, by name.

    Raises:
        CheckpointError: the layout cannot say what the model is.
    """
    head = checkpoint.entries["language_model.model.embed_tokens.weight"].dtype
    dtype = str(DTYPES[head]).removeprefix("torch.")
    kept = checkpoint.kept.get(layout)
    if kept is not None and (checkpoint.layout == layout or _hold(checkpoint, description, layout, dtype)):
        return kept
    write = official_write.write if layout == "official" else transformers_write.write
    return write(description, checkpoint.tokenizer_json, dtype)


def _hold(checkpoint: Checkpoint, description: Description, layout: Layout, dtype: str) -> bool:
    """Say whether kept files still stand for the model: it may have been changed in the other layout."""
    kept, where = checkpoint.kept[layout], f"{checkpoint.folder}/{KEPT}: {layout}"
    then = read_files(layout, kept, where, description.architecture)
    whole = complete(kept[TOKENIZER], special_tokens(checkpoint.model.plan.run.model))
    return (
        _said(then) == _said(description)
        and set(_dtypes(kept, where, layout)) <= {dtype}
        and same_tokenizer(whole, checkpoint.tokenizer_json)
    )


def _said(description: Description) -> tuple[object, ...]:
    """Return what files must say to stand for a model."""
    pixels = description.pixels
    return description.architecture, description.chat, description.tokens, pixels.do_normalize


def _dtypes(files: Files, where: str, layout: Layout) -> Iterator[str]:
    """Yield the dtypes that a config names for the whole and for the language model; it may name none."""
    config = parse_json(files[CONFIG], where)
    for block in (config, config.get(_LANGUAGE[layout])):
        for name in ("dtype", "torch_dtype"):  # transformers 5 and before
            if isinstance(block, dict) and isinstance(block.get(name), str):
                yield block[name].removeprefix("torch.")
