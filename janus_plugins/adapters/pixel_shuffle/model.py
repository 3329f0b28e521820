"""Pixel shuffle and an MLP. Source: InternVL 1.5, 3.3; transformers' `InternVLMultiModalProjector`."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from janus_plugins.adapters.pixel_shuffle.spec import PixelShuffleConfig
from janus_plugins.core.facts import AdapterFacts
from janus_plugins.core.grids import to_grid
from janus_plugins.core.weights import load_exactly, read_weights

_PREFIXES = ("model.multi_modal_projector.", "multi_modal_projector.")
_OFFICIAL = {"mlp1.0.": "layer_norm.", "mlp1.1.": "linear_1.", "mlp1.3.": "linear_2."}
"""OpenGVLab's names of the three layers."""


class PixelShuffle(nn.Module):
    """Map features [N, T, C] to embeddings [N, T / factor^2, M]. Layers are named as transformers does."""

    def __init__(self, config: PixelShuffleConfig, facts: AdapterFacts) -> None:
        super().__init__()
        self.config = config
        joined = facts.in_width * config.factor**2
        hidden = config.width or facts.out_width
        self.layer_norm = nn.LayerNorm(joined)
        self.linear_1 = nn.Linear(joined, hidden)
        self.linear_2 = nn.Linear(hidden, facts.out_width)

    def forward(self, source: Tensor) -> Tensor:
        """Return embeddings [N, T / factor^2, M] of features [N, T, C], row-major within each tile."""
        features = source.to(self.linear_1.weight.dtype)
        joined = self.layer_norm(shuffled(features, self.config))
        embeddings: Tensor = self.linear_2(functional.gelu(self.linear_1(joined)))
        return embeddings

    def load_weights(self, source: str) -> None:
        """Load InternVL's projector from its own file or from a whole InternVL (transformers, OpenGVLab).

        Raises:
            CheckpointError: nothing there, or keys or shapes that do not fit.
        """
        tensors = read_weights(source)
        for theirs, ours in [*((prefix, "") for prefix in _PREFIXES), *_OFFICIAL.items()]:
            found = {
                ours + name.removeprefix(theirs): each
                for name, each in tensors.items()
                if name.startswith(theirs)
            }
            tensors = {
                **{name: each for name, each in tensors.items() if not name.startswith(theirs)},
                **found,
            }
        own = self.state_dict()
        if own.keys() <= tensors.keys():
            tensors = {name: tensors[name] for name in own}
        load_exactly(self, tensors, source)


def shuffled(features: Tensor, config: PixelShuffleConfig) -> Tensor:
    """Return each square's features side by side [N, T / factor^2, C * factor^2]: top row first."""
    factor, width = config.factor, features.shape[2]
    grid = to_grid(features, config.grid, "pixel-shuffle")
    count, rows, columns = grid.shape[:3]
    parted = grid.reshape(count, rows // factor, factor, columns // factor, factor, width)
    squares = parted.transpose(2, 3)
    return squares.reshape(len(features), features.shape[1] // factor**2, width * factor**2)


def build(config: PixelShuffleConfig, facts: AdapterFacts) -> PixelShuffle:
    """Build the adapter."""
    return PixelShuffle(config, facts)
