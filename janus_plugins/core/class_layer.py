"""The last layer of a head over classes. Heads import it; core itself does not, since it needs torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from janus_plugins.core.choice import guide, linear_cross_entropy


class ClassLayer(nn.Linear):
    """Give logits, or the loss in chunks; both inside `forward`, where ZeRO-3 has the weight."""

    is_linear_alone = True

    def forward(self, hidden: Tensor, targets: Tensor | None = None, chunk: int = 0) -> Tensor:
        """Return logits [P, K] of hidden states [P, M], or with targets [P] the loss of each position [P].

        Args:
            hidden: taken in the weight's dtype.
            targets: classes (int64).
            chunk: rows of logits that may exist at the same time; see `linear_cross_entropy`.
        """
        hidden = hidden.to(self.weight.dtype)
        if targets is None:
            return super().forward(hidden)
        return linear_cross_entropy(hidden, self.weight, self.bias, targets, chunk)


def guided_logits(
    logits_of: Callable[[Tensor], Tensor], hidden: Tensor, unconditional: Tensor | None, guidance: float
) -> Tensor:
    """Return guided float32 logits [B, K]; both kinds of rows take one product, so a weight is read once.

    Args:
        logits_of: hidden states [P, M] -> logits [P, K].
        hidden: conditional rows [B, M].
        unconditional: rows [B, M], or None.
        guidance: s of `u + s (c - u)`.
    """
    if unconditional is None:
        return guide(logits_of(hidden), None, guidance)
    logits, other = torch.split(logits_of(torch.cat((hidden, unconditional))), len(hidden))
    return guide(logits, other, guidance)
