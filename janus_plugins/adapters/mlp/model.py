"""An MLP to the language model's width. Source: Janus, `MlpProjector` (`mlp_gelu`)."""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from janus_plugins.adapters.mlp.spec import MlpConfig
from janus_plugins.core.facts import AdapterFacts


class Mlp(nn.Module):
    """Map features or latents [N, T, C] to embeddings [N, T, M]. `layers` is named as officially."""

    def __init__(self, config: MlpConfig, facts: AdapterFacts) -> None:
        super().__init__()
        hidden = config.width or facts.out_width
        widths = [facts.in_width, *[hidden] * (config.depth - 1), facts.out_width]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.GELU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, source: Tensor) -> Tensor:
        """Return embeddings [N, T, M] of features [N, T, C]."""
        embeddings: Tensor = self.layers(source.to(next(self.layers.parameters()).dtype))
        return embeddings


def build(config: MlpConfig, facts: AdapterFacts) -> Mlp:
    """Build the MLP."""
    return Mlp(config, facts)
