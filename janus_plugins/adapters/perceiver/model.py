"""The perceiver resampler. Source: Flamingo (2204.14198), section 3.1 and appendix A.1.1."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from janus_plugins.adapters.perceiver.spec import PerceiverConfig
from janus_plugins.core.facts import AdapterFacts
from janus_plugins.core.weights import load_exactly, read_weights


class Attention(nn.Module):
    """Let queries read features and one another."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width
        self.norm_features, self.norm_queries = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_query = nn.Linear(width, heads * head_width, bias=False)
        self.to_key_value = nn.Linear(width, 2 * heads * head_width, bias=False)
        self.out = nn.Linear(heads * head_width, width, bias=False)

    def forward(self, features: Tensor, queries: Tensor, seen: Tensor | None) -> Tensor:
        """Return what the queries [N, K, D] read of features [N, T, D]; `seen` bool [N, 1, 1, T + K]."""
        queries = self.norm_queries(queries)
        both = torch.cat([self.norm_features(features), queries], dim=1)
        key, value = self.to_key_value(both).chunk(2, dim=-1)
        asked, key, value = (self._split(each) for each in (self.to_query(queries), key, value))
        read = functional.scaled_dot_product_attention(asked, key, value, attn_mask=seen)
        out: Tensor = self.out(read.transpose(1, 2).flatten(2))
        return out

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.reshape(*tokens.shape[:2], self.heads, self.head_width).transpose(1, 2)


class Layer(nn.Module):
    """Read, then think: attention and an MLP, each added to its input."""

    def __init__(self, width: int, config: PerceiverConfig) -> None:
        super().__init__()
        hidden = round(width * config.mlp_ratio)
        self.attention = Attention(width, config.num_heads, config.head_width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
        )

    def forward(self, features: Tensor, queries: Tensor, seen: Tensor | None) -> Tensor:
        """Return queries [N, K, D]."""
        queries = queries + self.attention(features, queries, seen)
        out: Tensor = queries + self.mlp(queries)
        return out


class Perceiver(nn.Module):
    """Map features [N, T, C] to embeddings [N, K, M]."""

    def __init__(self, config: PerceiverConfig, facts: AdapterFacts) -> None:
        super().__init__()
        self.num_tokens = config.tokens
        width = config.width or facts.in_width
        self.enter = nn.Identity() if width == facts.in_width else nn.Linear(facts.in_width, width)
        self.queries = nn.Parameter(torch.randn(config.tokens, width) * 0.02)
        self.layers = nn.ModuleList(Layer(width, config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, facts.out_width)

    def forward(self, source: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return embeddings [N, K, M] of features [N, T, C], of which the first `lengths` [N] count."""
        seen = None
        if lengths is not None:
            there = torch.arange(source.shape[1], device=source.device) < lengths[:, None]
            source = torch.where(there[..., None], source, 0)  # a weight of zero does not hide a NaN
            seen = functional.pad(there, (0, self.num_tokens), value=True)[:, None, None]
        features = self.enter(source.to(self.leave.weight.dtype))
        queries = self.queries.expand(len(source), -1, -1)
        for layer in self.layers:
            queries = layer(features, queries, seen)
        embeddings: Tensor = self.leave(self.norm(queries))
        return embeddings

    def load_weights(self, source: str) -> None:
        """Load weights under this module's own names.

        Raises:
            CheckpointError: nothing there, or keys or shapes that do not fit.
        """
        load_exactly(self, read_weights(source), source)


def build(config: PerceiverConfig, facts: AdapterFacts) -> Perceiver:
    """Build the adapter."""
    return Perceiver(config, facts)
