"""InternViT through transformers' `InternVLVisionModel`: all blocks; no final norm, as published."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import InternVLVisionConfig, InternVLVisionModel

from janus_plugins.core.facts import UnderstandingFacts
from janus_plugins.core.tiles import read_tiles
from janus_plugins.core.weights import load_exactly, read_weights
from janus_plugins.encoders.internvit.layouts import to_transformers
from janus_plugins.encoders.internvit.spec import InternVitConfig

_POSITIONS = "embeddings.position_embeddings"


class InternVit(nn.Module):
    """Turn pictures [N, C, S, S], or tiles [N, tiles, C, S, S], into features [N, T, width], row-major."""

    def __init__(self, config: InternVitConfig) -> None:
        super().__init__()
        sizes = config.sizes
        sides: dict[str, Any] = {
            "image_size": (config.image_size, config.image_size),
            "patch_size": (config.patch_size, config.patch_size),
            "attn_implementation": "sdpa",
        }
        published = InternVLVisionConfig(
            hidden_size=sizes.width,
            num_hidden_layers=sizes.depth,
            num_attention_heads=sizes.heads,
            intermediate_size=sizes.mlp_width,
            attention_bias=sizes.qkv_bias,
            use_qk_norm=sizes.qk_norm,
            norm_type=sizes.norm,
            num_channels=config.channels,
            **sides,
        )
        self.trunk = InternVLVisionModel(published)

    def forward(self, items: dict[str, Tensor]) -> Tensor:
        """Return features [N, T, width] of {"pixels"}, and of "pixels_lengths" tiles where they vary."""
        return read_tiles(items, self._read)

    def _read(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.trunk(pixel_values=pixels.to(self.trunk.dtype)).last_hidden_state
        return features[:, 1:]

    def compile_blocks(self) -> None:
        """Let `torch.compile` fuse each block, whatever number of items comes."""
        for block in self.trunk.encoder.layer:
            block.compile(dynamic=True)

    def load_weights(self, source: str) -> None:
        """Load weights in the layout of transformers, timm or OpenGVLab from a file, a folder or a hub id.

        Positions are resampled where the picture's size differs.

        Raises:
            CheckpointError: nothing there, or keys or shapes that do not fit.
        """
        tensors = to_transformers(read_weights(source))
        own = self.trunk.state_dict()[_POSITIONS]
        if _POSITIONS in tensors:
            tensors[_POSITIONS] = resampled(tensors[_POSITIONS], own.shape[1])
        load_exactly(self.trunk, tensors, source)


def resampled(positions: Tensor, length: int) -> Tensor:
    """Return position embeddings [1, length, C] of [1, L, C]: a class token, then a square grid."""
    old, new = (round((count - 1) ** 0.5) for count in (positions.shape[1], length))
    if old == new or old**2 + 1 != positions.shape[1]:
        return positions
    grid = positions[:, 1:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    flat = grid.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)
    return torch.cat([positions[:, :1], flat], dim=1)


def build(config: InternVitConfig, facts: UnderstandingFacts) -> InternVit:
    """Build the encoder with random weights."""
    return InternVit(config)
