"""The head over the vocabulary: a linear layer on hidden states. Source: Janus, `lm_head`."""

from __future__ import annotations

from torch import Tensor, nn

from janus_plugins.core.choice import choose
from janus_plugins.core.class_layer import ClassLayer, guided_logits
from janus_plugins.core.contracts import Draws
from janus_plugins.core.facts import HeadFacts
from janus_plugins.heads.text.spec import TextConfig


class TextHead(nn.Module):
    """Predict tokens from hidden states."""

    def __init__(self, config: TextConfig, facts: HeadFacts) -> None:
        super().__init__()
        self.config = config
        self.output = ClassLayer(facts.in_width, facts.size, bias=config.bias)
        nn.init.normal_(self.output.weight, std=0.02)

    def output_layer(self) -> nn.Linear:
        """Return the linear layer whose weight is tied to the token embedding, or loaded with it."""
        return self.output

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [P, V] of hidden states [P, M]."""
        logits: Tensor = self.output(hidden)
        return logits

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of each position [P] (float32) of hidden [P, M], token ids [P]."""
        losses: Tensor = self.output(hidden, targets, self.config.chunk)
        return losses

    def sample(
        self,
        hidden: Tensor,
        unconditional: Tensor | None,
        *,
        guidance: float,
        temperature: float,
        draws: Draws,
    ) -> Tensor:
        """Return the next token id of each row [B]; see `core.contracts.Head`."""
        logits, config = guided_logits(self.logits, hidden, unconditional, guidance), self.config
        return choose(logits, temperature=temperature, draws=draws, top_k=config.top_k, top_p=config.top_p)


def build(config: TextConfig, facts: HeadFacts) -> TextHead:
    """Build the text head."""
    return TextHead(config, facts)
