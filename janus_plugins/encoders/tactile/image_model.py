"""A vision transformer (timm) over touch pictures of 3 or 6 channels."""

from __future__ import annotations

from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from janus_plugins.core.errors import CheckpointError
from janus_plugins.core.facts import UnderstandingFacts
from janus_plugins.core.weights import load_exactly, read_weights
from janus_plugins.encoders.tactile.image_spec import TactileConfig

_HEAD = ("head.weight", "head.bias")


class TactileEncoder(nn.Module):
    """Turn touches [N, C, S, S] into patch features [N, T, width], row-major."""

    def __init__(self, config: TactileConfig) -> None:
        super().__init__()
        self.prefix = 1 + config.registers
        self.trunk = VisionTransformer(
            img_size=config.image_size,
            patch_size=config.patch_size,
            in_chans=config.channels,
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.num_heads,
            mlp_ratio=config.mlp_ratio,
            reg_tokens=config.registers,
            num_classes=0,
            global_pool="",
        )

    def forward(self, items: dict[str, Tensor]) -> Tensor:
        """Return features [N, T, width] of {"pixels": [N, C, S, S]}."""
        features: Tensor = self.trunk(items["pixels"].to(self.trunk.patch_embed.proj.weight.dtype))
        return features[:, self.prefix :]

    def load_weights(self, source: str) -> None:
        """Load a vision transformer in timm's layout; positions are resampled where the size differs.

        Raises:
            CheckpointError: nothing there, or keys or shapes that do not fit.
        """
        try:
            fitted = checkpoint_filter_fn(read_weights(source), self.trunk)
        except (RuntimeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{source!r} does not fit the tactile encoder: {error}") from error
        load_exactly(self.trunk, fitted, source, drop=_HEAD)


def build(config: TactileConfig, facts: UnderstandingFacts) -> TactileEncoder:
    """Build the encoder with random weights."""
    return TactileEncoder(config)
