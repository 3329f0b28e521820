"""What official files hold beside the model: made by the official code, never run by it."""

from __future__ import annotations

from collections.abc import Iterator

from janus_plugins.conversion.architecture import Architecture

CODEBOOK_USED = 65536
"""Length of the record of recent codes that the VQ model keeps. Source: Janus, `vq_model.py`."""


def extra_shapes(architecture: Architecture) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of SigLIP's pooling head and of the VQ model's record of codes."""
    width = architecture.vision.width
    inner = int(width * architecture.vision.mlp_ratio)
    pool = "vision_model.vision_tower.attn_pool"
    yield f"{pool}.latent", (1, 1, width)
    for name, rows, columns in (
        ("q", width, width),
        ("kv", 2 * width, width),
        ("proj", width, width),
        ("mlp.fc1", inner, width),
        ("mlp.fc2", width, inner),
    ):
        yield f"{pool}.{name}.weight", (rows, columns)
        yield f"{pool}.{name}.bias", (rows,)
    yield f"{pool}.norm.weight", (width,)
    yield f"{pool}.norm.bias", (width,)
    yield "gen_vision_model.quantize.codebook_used", (CODEBOOK_USED,)


def rotary_shapes(architecture: Architecture) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of the rotary frequencies that transformers before 4.32 wrote into files."""
    llama = architecture.llama
    half = (llama.hidden_size // llama.num_heads // 2,)
    for layer in range(llama.num_layers):
        yield f"language_model.model.layers.{layer}.self_attn.rotary_emb.inv_freq", half
