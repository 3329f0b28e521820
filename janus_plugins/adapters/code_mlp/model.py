"""The generation adapter: a table from code to vector, and an MLP. Source: Janus, `gen_embed`, `gen_aligner`.

A stage's `learn` decides what learns: the table is `<address>.table`, the MLP `<address>.layers`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from janus_plugins.adapters.code_mlp.spec import CodeMlpConfig
from janus_plugins.core.errors import WiringError
from janus_plugins.core.facts import AdapterFacts


class CodeMlp(nn.Module):
    """Map codes [N, T] to embeddings [N, T, M]."""

    def __init__(self, config: CodeMlpConfig, facts: AdapterFacts) -> None:
        super().__init__()
        if facts.codebook_size is None:
            raise WiringError("the adapter code-mlp reads codes, but its encoder has no codebook")
        self.config = config
        self.table = nn.Embedding(facts.codebook_size, facts.in_width)
        # As long as a row of a normalised codebook, so that both ways of starting are alike in scale.
        nn.init.normal_(self.table.weight, std=facts.in_width**-0.5)
        width = facts.out_width
        layers: list[nn.Module] = [nn.Linear(facts.in_width, width)]
        for _ in range(config.depth - 1):
            layers += [nn.GELU(), nn.Linear(width, width)]
        self.layers = nn.Sequential(*layers)

    def init_table(self, codes: Tensor) -> None:
        """Copy the encoder's normalised codebook [K, C] into the table, unless the options say random.

        Raises:
            WiringError: the codebook has another shape than the table.
        """
        if self.config.init_table == "random":
            return
        if codes.shape != self.table.weight.shape:
            ours, theirs = tuple(self.table.weight.shape), tuple(codes.shape)
            raise WiringError(f"the code table is {ours}, but the encoder's codebook is {theirs}")
        with torch.no_grad():
            self.table.weight.copy_(codes)

    def forward(self, source: Tensor) -> Tensor:
        """Return embeddings [N, T, M] of codes [N, T] (int64)."""
        embeddings: Tensor = self.layers(self.table(source))
        return embeddings


def build(config: CodeMlpConfig, facts: AdapterFacts) -> CodeMlp:
    """Build the adapter."""
    return CodeMlp(config, facts)
