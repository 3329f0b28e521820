"""Load published language-model weights, every key accounted for.

transformers reads the files (safetensors first, else pickles with weights_only) because it knows the
old spellings of each family's keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from janus_plugins.core.errors import CheckpointError
from janus_plugins.core.weights import read_pretrained
from janus_plugins.language_models.attention import NAME

if TYPE_CHECKING:
    from janus_plugins.language_models.model import CausalLanguageModel


def load_published(target: CausalLanguageModel, source: str) -> None:
    """Copy the weights at `source` into the body and the text head.

    Raises:
        CheckpointError: nothing there, or keys or shapes that do not fit.
    """
    loaded = read_pretrained(
        AutoModelForCausalLM,
        source,
        target.config,
        attn_implementation=NAME,
        dtype=next(target.model.parameters()).dtype,
        trust_remote_code=False,
    )
    target.model.load_state_dict(loaded.base_model.state_dict())
    if not target.facts.tied:
        _load_head(target.text_head, loaded.get_output_embeddings(), source)


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
