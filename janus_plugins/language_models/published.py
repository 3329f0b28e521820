"""Read the facts of a published language model from its config.json, without torch where possible."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from janus_plugins.core.errors import RunFileError
from janus_plugins.core.facts import LanguageModelFacts

LLAMA_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
"""What a Llama's config.json may leave out. Source: transformers, `LlamaConfig`."""

_SPELLINGS: dict[str, tuple[str, ...]] = {
    "width": ("hidden_size", "n_embd", "d_model"),
    "vocab_size": ("vocab_size",),
    "max_positions": ("max_position_embeddings", "n_positions", "max_seq_len"),
    "num_layers": ("num_hidden_layers", "n_layer", "n_layers"),
    "num_heads": ("num_attention_heads", "n_head", "n_heads"),
    "tied": ("tie_word_embeddings",),
}


_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def read_config(folder: str) -> dict[str, Any] | None:
    """Return the parsed config.json of a local folder, or None where there is no such folder.

    Raises:
        RunFileError: the folder has no config.json, or it is not a JSON object.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        return None
    path = root / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunFileError(f"{root} has no config.json; point 'folder' at a model's own folder") from None
    except (OSError, ValueError) as error:
        raise RunFileError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise RunFileError(f"{path} must hold a JSON object, not {type(config).__name__}")
    return config


def described_in(folder: str) -> dict[str, Any] | None:
    """Return what a local folder's config.json says; None where it cannot be read."""
    try:
        return read_config(folder)
    except RunFileError:  # it is said when the facts are asked for
        return None


def llama_facts(folder: str, described: dict[str, Any] | None) -> LanguageModelFacts:
    """Return the facts of the Llama whose config.json is in `folder`, or is given."""
    config = described or read_config(folder)
    if config is None:
        raise RunFileError(f"there is no folder {folder!r}; 'folder' of llama must be a local one")
    if config.get("model_type", "llama") != "llama":
        raise RunFileError(f"{folder}/config.json is a {config['model_type']!r}; use causal-lm for it")
    return _facts({**LLAMA_DEFAULTS, **config})


def causal_facts(folder: str, described: dict[str, Any] | None) -> LanguageModelFacts:
    """Return the facts of any causal language model, from its config.json or through transformers."""
    config = described or read_config(folder)
    if config is not None and all(_known(config, names) for names in _SPELLINGS.values()):
        return _facts(config)
    return _facts(transformers_config(folder, described).to_dict())


def transformers_config(folder: str, described: dict[str, Any] | None) -> Any:
    """Return transformers' configuration of a config.json that is given, or of a local folder or hub id.

    Foreign code is never run.

    Raises:
        RunFileError: it cannot be had.
    """
    from transformers import AutoConfig

    if described is not None:
        with tempfile.TemporaryDirectory() as place:  # transformers mends old spellings only of what it reads
            (Path(place) / "config.json").write_text(json.dumps(described), encoding="utf-8")
            return transformers_config(place, None)
    local = Path(folder).expanduser()
    asked = "" if local.is_dir() else ", which is no folder here; so the hub was asked"
    if asked and not _HUB_ID.fullmatch(folder):
        raise RunFileError(f"there is no folder {folder!r}; name one, or OWNER/NAME on the hub")
    try:
        config = AutoConfig.from_pretrained(folder if asked else str(local), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise RunFileError(f"no language model can be read from {folder!r}{asked}: {error}") from error
    return config.get_text_config(decoder=True)


def _known(config: dict[str, Any], names: tuple[str, ...]) -> bool:
    return any(config.get(name) is not None for name in names)


def _field(config: dict[str, Any], field: str) -> Any:
    for name in _SPELLINGS[field]:
        if config.get(name) is not None:
            return config[name]
    raise RunFileError(f"config.json says nothing of {' or '.join(_SPELLINGS[field])}")


def _facts(config: dict[str, Any]) -> LanguageModelFacts:
    heads = int(_field(config, "num_heads"))
    kept = config.get("num_key_value_heads")
    return LanguageModelFacts(
        width=int(_field(config, "width")),
        vocab_size=int(_field(config, "vocab_size")),
        max_positions=int(_field(config, "max_positions")),
        num_layers=int(_field(config, "num_layers")),
        num_heads=heads,
        num_key_value_heads=heads if kept is None else int(kept),
        tied=bool(_field(config, "tied")),
        bidirectional=True,
    )
