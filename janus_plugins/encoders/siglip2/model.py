"""SigLIP 2's vision transformer (transformers) over pictures of different shapes, without pooling."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import LongTensor, Tensor, nn
from transformers import Siglip2VisionConfig, Siglip2VisionModel
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings

from janus_plugins.core.facts import UnderstandingFacts
from janus_plugins.core.weights import load_exactly, read_weights
from janus_plugins.encoders.siglip2.spec import Siglip2Config

_PREFIX = "vision_model."
_PATCH = "embeddings.patch_embedding.weight"


class Embeddings(Siglip2VisionEmbeddings):  # type: ignore[misc]
    """Embed patches and places. transformers reads the table of places without running it.

    Under ZeRO-3 a weight is there only while its module runs, so here the table is run.
    """

    def forward(self, pixel_values: Tensor, spatial_shapes: Tensor) -> Tensor:
        """Return embeddings [N, T, width] of patches [N, T, P] that lie in `spatial_shapes` [N, 2]."""
        side = self.position_embedding_size
        table = self.position_embedding(torch.arange(side * side, device=pixel_values.device))
        places = self.resize_positional_embeddings(
            table.reshape(side, side, -1), cast(LongTensor, spatial_shapes), max_length=pixel_values.shape[1]
        )
        embedded: Tensor = self.patch_embedding(pixel_values) + places
        return embedded


class Siglip2(nn.Module):
    """Turn patches [N, T, P] into features [N, T, width]; zero behind each picture's last."""

    def __init__(self, config: Siglip2Config) -> None:
        super().__init__()
        sizes = config.sizes
        options: dict[str, Any] = {"attn_implementation": "sdpa", "vision_use_head": False}
        published = Siglip2VisionConfig(
            hidden_size=sizes.width,
            num_hidden_layers=sizes.depth,
            num_attention_heads=sizes.heads,
            intermediate_size=sizes.mlp_width,
            patch_size=config.patch_size,
            num_patches=config.position_side**2,
            **options,
        )
        self.trunk = Siglip2VisionModel(published)
        embeddings = Embeddings(published)
        embeddings.load_state_dict(self.trunk.embeddings.state_dict())
        self.trunk.embeddings = embeddings

    def forward(self, items: dict[str, Tensor]) -> Tensor:
        """Return features [N, T, width] of {"patches", "shape"}, and of "patches_lengths" where they vary."""
        patches, shapes = items["patches"].to(self.trunk.dtype), items["shape"]
        count, tokens, width = patches.shape
        if not count:
            patches, shapes = patches.new_zeros(1, tokens, width), shapes.new_ones(1, 2)
        lengths = shapes.prod(1).to(patches.device)
        there = torch.arange(tokens, device=patches.device) < lengths[:, None]
        features: Tensor = self.trunk(
            pixel_values=patches, pixel_attention_mask=there, spatial_shapes=shapes
        ).last_hidden_state
        return (features * there[..., None])[:count]

    def compile_blocks(self) -> None:
        """Let `torch.compile` fuse each block, whatever number of items comes."""
        for block in self.trunk.encoder.layers:
            block.compile(dynamic=True)

    def load_weights(self, source: str) -> None:
        """Load weights of transformers: of NaFlex models, or of SigLIP models of one size.

        The text model and the pooling head are left out.

        Raises:
            CheckpointError: nothing there, or keys or shapes that do not fit.
        """
        tensors = read_weights(source)
        found = {
            name.removeprefix(_PREFIX): each for name, each in tensors.items() if name.startswith(_PREFIX)
        }
        tensors = found or tensors
        patch = tensors.get(_PATCH)
        if patch is not None and patch.ndim == 4:
            # A convolution over whole patches is a linear layer over them, channels last.
            tensors[_PATCH] = patch.permute(0, 2, 3, 1).flatten(1)
        head = {name for name in tensors if name.startswith("head.")}
        load_exactly(self.trunk, tensors, source, drop=head, optional=_buffers(self.trunk))


def _buffers(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_buffers()}


def build(config: Siglip2Config, facts: UnderstandingFacts) -> Siglip2:
    """Build the encoder with random weights."""
    return Siglip2(config)
