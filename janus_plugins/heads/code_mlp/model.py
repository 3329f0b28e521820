"""The head over a codebook: Linear, GELU, Linear. Source: Janus, `gen_head` (`vision_head`)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from janus_plugins.core.choice import choose, distribution
from janus_plugins.core.class_layer import ClassLayer, guided_logits
from janus_plugins.core.contracts import Draws
from janus_plugins.core.facts import HeadFacts
from janus_plugins.heads.code_mlp.spec import CodeHeadConfig


class CodeHead(nn.Module):
    """Predict codes from hidden states. Names follow the official `gen_head`."""

    def __init__(self, config: CodeHeadConfig, facts: HeadFacts) -> None:
        super().__init__()
        self.config = config
        width = config.width or facts.in_width
        self.output_mlp_projector = nn.Linear(facts.in_width, width)
        self.vision_head = ClassLayer(width, facts.size)

    def _features(self, hidden: Tensor) -> Tensor:
        hidden = hidden.to(self.output_mlp_projector.weight.dtype)
        return functional.gelu(self.output_mlp_projector(hidden))

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [P, K] of hidden states [P, M]."""
        logits: Tensor = self.vision_head(self._features(hidden))
        return logits

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of each position [P] (float32) of hidden [P, M], codes [P]."""
        losses: Tensor = self.vision_head(self._features(hidden), targets, self.config.chunk)
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
        """Return the next code of each row [B]; see `core.contracts.Head`."""
        config = self.config
        return choose(
            guided_logits(self.logits, hidden, unconditional, guidance),
            temperature=temperature,
            draws=draws,
            top_k=config.top_k,
            top_p=config.top_p,
        )

    def distribution(
        self, hidden: Tensor, unconditional: Tensor | None, *, guidance: float, temperature: float
    ) -> Tensor:
        """Return the shares [P, K] that `sample` draws from; see `core.contracts.OpenHead`."""
        logits, config = guided_logits(self.logits, hidden, unconditional, guidance), self.config
        return distribution(logits, temperature=temperature, top_k=config.top_k, top_p=config.top_p)


def build(config: CodeHeadConfig, facts: HeadFacts) -> CodeHead:
    """Build the code head."""
    return CodeHead(config, facts)
