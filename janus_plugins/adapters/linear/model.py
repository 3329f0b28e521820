"""One linear layer to the language model's width. Source: LLaVA 1.0, `mm_projector` (`linear`)."""

from __future__ import annotations

from torch import Tensor, nn

from janus_plugins.adapters.linear.spec import LinearConfig
from janus_plugins.core.facts import AdapterFacts
from janus_plugins.core.weights import load_exactly, read_weights

_PREFIXES = ("model.mm_projector.", "mm_projector.")
"""Before the projector's names in LLaVA's files."""


class LinearAdapter(nn.Module):
    """Map features or latents [N, T, C] to embeddings [N, T, M]."""

    def __init__(self, config: LinearConfig, facts: AdapterFacts) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(facts.in_width) if config.norm else nn.Identity()
        self.linear = nn.Linear(facts.in_width, facts.out_width, bias=config.bias)

    def forward(self, source: Tensor) -> Tensor:
        """Return embeddings [N, T, M] of features [N, T, C]."""
        embeddings: Tensor = self.linear(self.norm(source.to(self.linear.weight.dtype)))
        return embeddings

    def load_weights(self, source: str) -> None:
        """Load a projector: LLaVA's ("mm_projector.weight"), or this module's own names.

        Raises:
            CheckpointError: nothing there, or keys or shapes that do not fit.
        """
        tensors = read_weights(source)
        for prefix in _PREFIXES:
            if f"{prefix}weight" in tensors:
                tensors = {
                    f"linear.{name.removeprefix(prefix)}": each
                    for name, each in tensors.items()
                    if name.startswith(prefix)
                }
        load_exactly(self, tensors, source)


def build(config: LinearConfig, facts: AdapterFacts) -> LinearAdapter:
    """Build the adapter."""
    return LinearAdapter(config, facts)
