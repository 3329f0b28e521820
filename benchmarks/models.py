"""Models to measure: two sizes of ours, and the same weights in transformers' own class."""

from __future__ import annotations

import functools
import inspect
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import JanusForConditionalGeneration
from transformers.utils import logging

import janus_plugins as jp
from janus_plugins.core.runfile import load_run_text
from janus_plugins.core.wiring import resolve
from janus_plugins.model.compose import compose_plan
from janus_plugins.model.unified import UnifiedModel

_RUN = """
name: benchmark
seed: 1
model:
  language_model:
    use: llama
    options: {{vocab_size: 512, hidden_size: {width}, intermediate_size: {inner}, num_layers: {layers},
              num_heads: {heads}, max_positions: 4096, init_std: {std}}}
    tokenizer: {{type: bytes}}
    template: deepseek-old
  understanding:
    image:
      encoder:
        use: siglip
        options: {{img_size: 96, patch_size: 8, embed_dim: 64, depth: 1, num_heads: 2}}
      adapter: {{use: mlp}}
  generation:
    image:
      encoder:
        use: vq
        options: {{image_size: {pixels}, channels: 32, multipliers: [1, 1, 1, 2], num_res_blocks: 1,
                  z_channels: 32, codebook_size: {codes}}}
      adapter: {{use: code-mlp}}
      head: {{use: code-mlp}}
"""

SIZES: dict[str, dict[str, float]] = {
    "7.5M": {"width": 256, "inner": 704, "layers": 8, "heads": 8, "std": 0.08, "codes": 2048},
    "170M": {"width": 1024, "inner": 2816, "layers": 12, "heads": 16, "std": 0.04, "codes": 16384},
}
"""Both make 144 codes an image unless told otherwise; greedy codes differ from step to step."""


def ours(size: str, side: int = 12) -> UnifiedModel:
    """Return our model of a size, with random weights large enough that choices are clear.

    Args:
        size: of `SIZES`.
        side: codes along each side of a picture.
    """
    text = _RUN.format(pixels=8 * side, **SIZES[size])
    return decided(compose_plan(resolve(load_run_text(text, f"{size}.yaml"))).eval())


@torch.no_grad()
def decided(model: UnifiedModel) -> UnifiedModel:
    """Make the image head's weights six times what they are, so that greedy choices are clear."""
    for parameter in model.generation["image"].head.parameters():  # type: ignore[union-attr]
        parameter.mul_(6)
    return model


def theirs(model: UnifiedModel, dtype: torch.dtype = torch.float32) -> Any:
    """Return transformers' model of the same weights, through `jp.convert`, on the CPU."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        native, foreign = Path(folder, "native"), Path(folder, "transformers")
        model.save(str(native))
        jp.convert(native, foreign, layout="transformers")
        return mended(JanusForConditionalGeneration.from_pretrained(foreign, dtype=dtype).eval())


def mended(foreign: Any) -> Any:
    """Let transformers 5.17 generate images: it calls its own method without an argument that it needs."""
    whole = foreign._prepare_static_cache
    if "prefill_chunk_size" in inspect.signature(whole).parameters:
        foreign._prepare_static_cache = functools.partial(whole, prefill_chunk_size=None)
    return foreign


def decoding_parameters(model: UnifiedModel) -> int:
    """Return how many parameters one decoding step reads: layers, norms, head."""
    body: Any = model.language_model
    head = sum(each.numel() for each in model.generation["image"].head.parameters())  # type: ignore[union-attr]
    layers = (
        sum(each.numel() for each in body.model.parameters())
        - body.model.get_input_embeddings().weight.numel()
    )
    return int(layers + head)
