"""Point-BERT's encoder: neighbourhoods, a small PointNet over each, a transformer over them.

Source: Point-BERT (2111.14819), section 3.1, and its `PointTransformer`, whose names are kept. Written anew.
"""

from __future__ import annotations

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional

from janus_plugins.core.facts import UnderstandingFacts
from janus_plugins.core.weights import load_exactly, read_weights
from janus_plugins.encoders.point_cloud.groups import farthest_points, gathered, neighbours
from janus_plugins.encoders.point_cloud.spec import PointCloudConfig

_PREFIXES = (
    "module.transformer_q.",
    "transformer_q.",
    "module.",
    "module.point_encoder.",
    "point_encoder.",
    "model.point_backbone.",
)
"""Before the encoder's names in published files: pre-training, fine-tuning, models built on it (ULIP 2,
PointLLM)."""
_HEADS = ("cls_head_finetune.", "cls_head.", "lm_head.", "mask_token")

_SHARPER = 5.0
"""Times torch's start of the first layer over positions (nine shapes, 250 steps: 10 % wrong, not 16 %)."""


class PointConv(nn.Conv1d):
    """Map the channels of each point by itself: a convolution of width one, with the channels last."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., width] of [..., C]."""
        return functional.linear(x, self.weight.squeeze(2), self.bias)


class JoinedConv(PointConv):
    """Map what a neighbourhood has in common beside each of its points.

    The common half is multiplied once a neighbourhood, not once a point, which is half of the work.
    """

    def forward(self, common: Tensor, each: Tensor) -> Tensor:  # type: ignore[override]
        """Return [B, K, width] of common [B, 1, C] and each [B, K, C]: of both side by side."""
        of_common, of_each = self.weight.squeeze(2).chunk(2, dim=1)
        return functional.linear(each, of_each, self.bias) + functional.linear(common, of_common)


class FixedBatchNorm(nn.BatchNorm1d):
    """Normalise with the statistics of loaded weights.

    They are never updated: ranks see different data, and dummies stand in where there is none.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, K, C]."""
        flat = functional.batch_norm(
            x.flatten(0, 1),
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=False,
            eps=self.eps,
        )
        return flat.view_as(x)


class PointNet(nn.Module):
    """Turn neighbourhoods [B, K, C] into one vector each [B, D], whatever the order of their points."""

    def __init__(self, config: PointCloudConfig) -> None:
        super().__init__()
        make = FixedBatchNorm if config.norm == "batch" else nn.LayerNorm
        small, middle, large = (config.pointnet_width * times for times in (1, 2, 4))
        self.first_conv = nn.Sequential(
            PointConv(config.channels, small), make(small), nn.ReLU(), PointConv(small, middle)
        )
        self.second_conv = nn.Sequential(
            JoinedConv(2 * middle, large), make(large), nn.ReLU(), PointConv(large, config.point_width)
        )

    def forward(self, points: Tensor) -> Tensor:
        """Return vectors [B, D] of points [B, K, C]."""
        each = self.first_conv(points)
        join, norm, bend, last = self.second_conv
        vectors: Tensor = last(bend(norm(join(each.amax(1, keepdim=True), each)))).amax(1)
        return vectors


class Blocks(nn.Module):
    """Run the transformer; positions are added before every block, as in Point-BERT."""

    def __init__(self, config: PointCloudConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(config.width, config.num_heads, config.mlp_ratio, norm_layer=nn.LayerNorm)
            for _ in range(config.depth)
        )

    def forward(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """Return hidden states [N, T, width]."""
        for block in self.blocks:
            hidden = block(hidden + positions)
        return hidden


class PointCloudEncoder(nn.Module):
    """Turn points [N, P, C] into features of neighbourhoods [N, G, width]."""

    def __init__(self, config: PointCloudConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = PointNet(config)
        self.reduce_dim = nn.Linear(config.point_width, config.width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.cls_pos = nn.Parameter(torch.randn(1, 1, config.width) * 0.02)
        first = nn.Linear(3, 128)
        with torch.no_grad():  # coordinates within 1 leave GELU in its straight part, and shapes unseen
            first.weight.mul_(_SHARPER)
        self.pos_embed = nn.Sequential(first, nn.GELU(), nn.Linear(128, config.width))
        self.blocks = Blocks(config)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, items: dict[str, Tensor]) -> Tensor:
        """Return features [N, G, width] of {"points": [N, P, C]}."""
        points, config = items["points"].float(), self.config
        places = points[..., :3]
        centres = gathered(places, farthest_points(places, config.groups))
        near = gathered(points, neighbours(places, centres, config.group_size))
        around = near[..., :3] - centres[:, :, None]
        if config.norm == "layer":
            around = around / _spread(around)
        near = torch.cat([around, near[..., 3:]], dim=-1)
        dtype = self.reduce_dim.weight.dtype
        vectors = self.encoder(near.to(dtype).flatten(0, 1))
        vectors = vectors.reshape(len(points), config.groups, config.point_width)
        first = self.cls_token.expand(len(points), -1, -1)
        hidden = torch.cat([first, self.reduce_dim(vectors)], dim=1)
        positions = torch.cat([self.cls_pos.expand_as(first), self.pos_embed(centres.to(dtype))], dim=1)
        features: Tensor = self.norm(self.blocks(hidden, positions))
        return features[:, 1:]

    def load_weights(self, source: str) -> None:
        """Load Point-BERT's weights, or this module's own; heads are left out.

        Raises:
            CheckpointError: nothing there, or keys or shapes that do not fit (its published files need
                `norm: batch`).
        """
        tensors = read_weights(source)
        for prefix in _PREFIXES:
            if f"{prefix}cls_pos" in tensors:
                tensors = {
                    name.removeprefix(prefix): each
                    for name, each in tensors.items()
                    if name.startswith(prefix)
                }
        heads = {name for name in tensors if name.startswith(_HEADS)}
        load_exactly(self, tensors, source, drop=heads)


def _spread(around: Tensor) -> Tensor:
    """Return how far a cloud's points lie from their centres [N, 1, 1, 1], a root mean square.

    Batch normalisation brings small neighbourhoods to scale; that over channels cannot, and the first
    layer's bias then drowns them: without this, ten shapes were told apart no better than by chance
    after 100 steps.
    """
    return around.square().sum(-1).mean((1, 2)).sqrt().clamp_min(1e-6)[:, None, None, None]


def build(config: PointCloudConfig, facts: UnderstandingFacts) -> PointCloudEncoder:
    """Build the encoder with random weights."""
    return PointCloudEncoder(config)
