"""Small options for shipped components whose defaults are too large, or lack something, for a check.

A component of one's own declares them itself, as `tiny()` on its config, or passes `options=`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import ComponentSpec

_SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
}


def _llama(folder: Path) -> dict[str, Any]:
    return {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_layers": 2,
        "num_heads": 2,
        "num_key_value_heads": 1,
        "max_positions": 128,
        "tie": True,
    }


def _causal_lm(folder: Path) -> dict[str, Any]:
    config = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps({**config, **_SIZES}), encoding="utf-8")
    return {"folder": str(folder)}


def _siglip(folder: Path) -> dict[str, Any]:
    return {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}


def _vq(folder: Path) -> dict[str, Any]:
    sizes = {"image_size": 16, "channels": 8, "multipliers": [1, 2], "num_res_blocks": 1}
    return {**sizes, "z_channels": 8, "codebook_size": 16, "code_width": 4, "norm_groups": 4}


def _semantic_vq(folder: Path) -> dict[str, Any]:
    teacher = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "weights": None}
    return {
        **_vq(folder),
        "semantic": {"width": 16, "depth": 1, "num_heads": 2},
        "teacher": teacher,
        "discriminator": {"channels": 8, "layers": 2, "start": 0},
    }


def _hf_dataset(folder: Path) -> dict[str, Any]:
    rows = [{"question": f"number {index}?", "answer": f"it is {index}"} for index in range(12)]
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return {"path": str(path), "columns": {"question": "{question}", "answer": "{answer}"}, "streaming": True}


PRESETS: Mapping[tuple[Kind, str], Callable[[Path], dict[str, Any]]] = {
    (Kind.LANGUAGE_MODEL, "llama"): _llama,
    (Kind.LANGUAGE_MODEL, "causal-lm"): _causal_lm,
    (Kind.UNDERSTANDING_ENCODER, "siglip"): _siglip,
    (Kind.GENERATION_ENCODER, "vq"): _vq,
    (Kind.GENERATION_ENCODER, "semantic-vq"): _semantic_vq,
    (Kind.UNDERSTANDING_ENCODER, "semantic-vq"): _semantic_vq,
    (Kind.SOURCE, "hf-dataset"): _hf_dataset,
}
"""Given an empty folder, which they may put files into, the options of a shipped component."""


def tiny_options(spec: ComponentSpec, folder: Path) -> dict[str, Any]:
    """Return the options to check a component with: its config's `tiny()`, a preset, or its defaults."""
    declared = getattr(spec.config, "tiny", None)
    if declared is not None:
        return dict(declared())
    preset = PRESETS.get((spec.kind, spec.name))
    shipped = spec.config.__module__.partition(".")[0] == __name__.partition(".")[0]
    return preset(folder) if preset and shipped else {}
