"""The generation adapter of several codebooks: the vectors of a frame's codes, summed, and an MLP.

Source: MusicGen (2306.05284), section 2.3, and Moshi (2410.00037), section 3.4: one table a codebook, and the
sum of a frame's vectors as the language model's input. A stage's `learn` decides what learns: the tables are
`<address>.table`, the MLP `<address>.layers`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from janus_plugins.adapters.code_sum.spec import CodeSumConfig
from janus_plugins.core.errors import WiringError
from janus_plugins.core.facts import AdapterFacts


class CodeSum(nn.Module):
    """Map codes [N, T, Q] to embeddings [N, T, M]."""

    def __init__(self, config: CodeSumConfig, facts: AdapterFacts) -> None:
        super().__init__()
        assert facts.codebook_size is not None
        self.config, self.codebooks, self.size = config, facts.codebooks, facts.codebook_size
        # One table for all codebooks, of which each has its own rows: a single look-up.
        self.table = nn.Embedding(self.codebooks * self.size, facts.in_width)
        # So that a sum of Q rows is about as long as one row of a normalised codebook.
        nn.init.normal_(self.table.weight, std=(facts.in_width * self.codebooks) ** -0.5)
        width = facts.out_width
        layers: list[nn.Module] = [nn.Linear(facts.in_width, width)]
        for _ in range(config.depth - 1):
            layers += [nn.GELU(), nn.Linear(width, width)]
        self.layers = nn.Sequential(*layers)

    def init_table(self, codes: Tensor) -> None:
        """Copy the encoder's codebooks [Q, K, C] into the table, unless the options say random.

        One factor brings the sum of a frame to a length of about 1. Between codebooks the proportions stay:
        a residual quantizer's later codes are small corrections of the first.

        Raises:
            WiringError: the codebooks have another shape than the table.
        """
        if self.config.init_table == "random":
            return
        ours = (self.codebooks, self.size, self.table.weight.shape[1])
        if tuple(codes.shape) != ours:
            raise WiringError(f"the code tables are {ours}, but the encoder's codebooks {tuple(codes.shape)}")
        rows = codes.float()
        length = rows.square().sum(-1).mean(1).sum().sqrt().clamp_min(1e-6)
        with torch.no_grad():
            self.table.weight.copy_((rows / length).flatten(0, 1))

    def forward(self, source: Tensor) -> Tensor:
        """Return embeddings [N, T, M] of codes [N, T, Q] (int64)."""
        first = torch.arange(self.codebooks, device=source.device) * self.size
        embeddings: Tensor = self.layers(self.table(source + first).sum(-2))
        return embeddings


def build(config: CodeSumConfig, facts: AdapterFacts) -> CodeSum:
    """Build the adapter."""
    return CodeSum(config, facts)
