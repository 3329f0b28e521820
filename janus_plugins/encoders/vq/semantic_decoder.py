"""The causal vision transformer that reads code vectors. Source: Janus, appendix A.

Pre-norm blocks as in ViT; the mask lets a code see only those before it in raster order.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from janus_plugins.encoders.vq.semantic_spec import SemanticDecoderConfig


class Block(nn.Module):
    """Run causal attention and an MLP over [N, T, D], each added to its input."""

    def __init__(self, config: SemanticDecoderConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        inner = int(config.width * config.mlp_ratio)
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.fc1 = nn.Linear(config.width, inner)
        self.fc2 = nn.Linear(inner, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, T, D]."""
        query, key, value = self.qkv(self.norm1(x)).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        seen = functional.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), is_causal=True
        )
        x = x + self.proj(seen.transpose(1, 2).flatten(2))
        deeper: Tensor = x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))
        return deeper


class SemanticDecoder(nn.Module):
    """Turn code vectors [N, T, code_width] into features [N, T, width]."""

    def __init__(self, config: SemanticDecoderConfig, code_width: int, tokens: int) -> None:
        super().__init__()
        self.embed = nn.Linear(code_width, config.width)
        self.places = nn.Embedding(tokens, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        nn.init.normal_(self.places.weight, std=0.02)

    def forward(self, vectors: Tensor) -> Tensor:
        """Return features after the last block and norm [N, T, width]."""
        x = self.embed(vectors) + self.places(torch.arange(vectors.shape[1], device=vectors.device))
        for block in self.blocks:
            x = block(x)
        features: Tensor = self.norm(x)
        return features
