"""Load published language-model weights, every key accounted for.

transformers reads the files (safetensors first, else pickles with weights_only) because it knows the
old spellings of each family's keys; what it found is then checked here, not logged.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from janus_plugins.core.errors import CheckpointError
from janus_plugins.language_models.attention import NAME

if TYPE_CHECKING:
    from janus_plugins.language_models.model import CausalLanguageModel


def load_published(target: CausalLanguageModel, source: str) -> None:
    """Copy the weights at `source` into the body and the text head.

    Raises:
        CheckpointError: nothing there, or keys or shapes that do not fit.
    """
    loaded, report = _read(target, source)
    _check_report(source, report)
    target.model.load_state_dict(loaded.base_model.state_dict())
    if not target.facts.tied:
        _load_head(target.text_head, loaded.get_output_embeddings(), source)


def _read(target: CausalLanguageModel, source: str) -> tuple[Any, dict[str, Any]]:
    local = Path(source).expanduser()
    if local.is_file():
        raise CheckpointError(f"{source} is a file; name the folder that holds it")
    dtype = next(target.model.parameters()).dtype
    try:
        answer: Any = AutoModelForCausalLM.from_pretrained(
            str(local) if local.is_dir() else source,
            config=target.config,
            attn_implementation=NAME,
            dtype=dtype,
            trust_remote_code=False,
            weights_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
        )
        model, report = answer
    except Exception as error:
        raise CheckpointError(f"no language-model weights can be read from {source!r}: {error}") from error
    return model, report


def _check_report(source: str, report: dict[str, Any]) -> None:
    problems = []
    for label in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(str(key) for key in report.get(label) or ())
        if keys:
            more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
            problems.append(f"{len(keys)} {label.replace('_', ' ')} ({', '.join(keys[:5])}{more})")
    if report.get("error_msgs"):
        problems.append(str(report["error_msgs"]))
    if problems:
        raise CheckpointError(f"{source!r} does not fit the language model: {'; '.join(problems)}")


def _load_head(head: nn.Module, published: nn.Module, source: str) -> None:
    """Copy the published output layer into the text head's."""
    offered = getattr(head, "output_layer", None)
    if offered is None:
        raise CheckpointError(
            f"the text head {type(head).__name__} has no output_layer() for the head in {source!r}; use the "
            "head 'text'"
        )
    _copy(offered(), dict(published.named_parameters()), source)


def _copy(layer: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    ours = {name: tuple(tensor.shape) for name, tensor in layer.named_parameters()}
    theirs = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if ours != theirs:
        raise CheckpointError(f"the text head has {ours}, but the head in {source!r} has {theirs}")
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(tensors[name])
