"""SigLIP's vision transformer as timm builds it, without pooling: all blocks and the final norm.

Source: Janus, `CLIPVisionTower` (select_layer -1, select_feature same).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from janus_plugins.core.errors import CheckpointError
from janus_plugins.core.facts import UnderstandingFacts
from janus_plugins.core.weights import load_exactly, read_weights
from janus_plugins.encoders.siglip.spec import SiglipConfig

_POOL = "attn_pool."
"""Prefix of the pooling head's weights in published files; the official Janus files hold it unused."""


class Siglip(nn.Module):
    """Turn pictures [N, C, S, S] into patch features [N, T, width], row-major."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.config = config
        named: dict[str, Any] = {
            "img_size": config.img_size,
            "patch_size": config.patch_size,
            "embed_dim": config.embed_dim,
            "depth": config.depth,
            "num_heads": config.num_heads,
            "mlp_ratio": config.mlp_ratio,
        }
        overrides = {name: value for name, value in named.items() if value is not None}
        trunk = timm.create_model(
            config.name,
            pretrained=False,
            num_classes=0,
            global_pool="",
            in_chans=config.channels,
            **overrides,
        )
        assert isinstance(trunk, VisionTransformer)
        self.trunk = trunk

    def forward(self, items: dict[str, Tensor]) -> Tensor:
        """Return features [N, T, width] of {"pixels": [N, C, S, S]}."""
        pixels = items["pixels"].to(self.trunk.patch_embed.proj.weight.dtype)
        features: Tensor = self.trunk(pixels)
        return features

    def compile_blocks(self) -> None:
        """Let `torch.compile` fuse each block, whatever number of items comes."""
        for block in self.trunk.blocks:
            block.compile(dynamic=True)

    def published_only(self) -> dict[str, int]:
        """Return the parameters of the pooling head, which published files hold and nothing here uses."""
        with torch.device("meta"):
            whole: Any = timm.create_model(self.config.name, pretrained=False, num_classes=0)
        pool, own = getattr(whole, "attn_pool", None), self.trunk
        same = (whole.embed_dim, len(whole.blocks)) == (own.embed_dim, len(list(own.blocks.children())))
        if pool is None or not same:
            return {}  # nobody published this size
        return {_POOL.rstrip("."): sum(parameter.numel() for parameter in pool.parameters())}

    def load_weights(self, source: str) -> None:
        """Load weights in timm's layout from a file, a folder, a hub id or one of timm's tags ("webli").

        As timm does, the position embedding is resampled where the picture's size differs.

        Raises:
            CheckpointError: nothing there, or keys or shapes that do not fit.
        """
        tagged = f"{self.config.name}.{source}"
        if not Path(source).expanduser().exists() and tagged in timm.list_pretrained(self.config.name):
            source = f"timm/{tagged}"
        tensors = read_weights(source)
        try:
            fitted = checkpoint_filter_fn(dict(tensors), self.trunk)
        except (RuntimeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{source!r} does not fit {self.config.name}: {error}") from error
        load_exactly(self.trunk, fitted, source, drop={name for name in fitted if name.startswith(_POOL)})


def build(config: SiglipConfig, facts: UnderstandingFacts) -> Siglip:
    """Build the encoder with random weights."""
    encoder = Siglip(config)
    made = (encoder.trunk.patch_embed.num_patches, encoder.trunk.embed_dim)
    assert made == (facts.max_tokens, facts.width), f"timm makes {made}, the facts say {facts}"
    return encoder.to(torch.get_default_dtype())
