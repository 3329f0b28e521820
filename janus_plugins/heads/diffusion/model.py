"""The head over continuous latents: a small network that makes one latent out of noise for each position.

Source: MAR, "Autoregressive image generation without vector quantization" (Li et al. 2024, arXiv
2406.11838), sections 3.2 and 3.3. The language model says, by its hidden state, which distribution the next
latent has; the network, trained with it, is the distribution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from janus_plugins.core.choice import guide
from janus_plugins.core.contracts import Draws
from janus_plugins.core.facts import HeadFacts
from janus_plugins.heads.diffusion.network import Denoiser
from janus_plugins.heads.diffusion.process import Diffusion, Flow, Process
from janus_plugins.heads.diffusion.spec import DiffusionConfig


class DiffusionHead(nn.Module):
    """Answer for latents [P, C] by hidden states [P, M]."""

    def __init__(self, config: DiffusionConfig, facts: HeadFacts) -> None:
        super().__init__()
        self.config, self.size = config, facts.size
        self.process = _process(config)
        self.condition = nn.Linear(facts.in_width, config.width)
        nn.init.xavier_uniform_(self.condition.weight)
        nn.init.zeros_(self.condition.bias)
        outputs = self.process.outputs(facts.size)
        self.network = Denoiser(facts.size, outputs, config.width, config.depth)

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each position [P] (float32), a mean over `repeats` times and noises.

        Args:
            hidden: hidden states [P, M].
            targets: latents [P, C].
        """
        condition = self._condition(hidden)
        latents = targets.float().expand(self.config.repeats, *targets.shape)
        losses = self.process.losses(lambda noisy, times: self.network(noisy, times, condition), latents)
        return losses.mean(0)

    def sample(
        self,
        hidden: Tensor,
        unconditional: Tensor | None,
        *,
        guidance: float,
        temperature: float,
        draws: Draws,
    ) -> Tensor:
        """Return the next latent of each row [B, C] (float32); see `core.contracts.Head`.

        Guidance is on what the network predicts, at every step; a learnt variance is the conditional one.
        A temperature of 0 begins in the middle of all noise and draws none: the same latent for every seed.
        """
        condition = self._condition(hidden if unconditional is None else torch.cat((hidden, unconditional)))
        rows = len(hidden)

        def denoise(noisy: Tensor, times: Tensor) -> Tensor:
            # Both kinds of rows in one product, from the same noise.
            both = noisy if unconditional is None else torch.cat((noisy, noisy))
            answer, *other = self.network(both, times, condition).split(rows)
            plain = other[0][:, : self.size] if other else None
            guided = guide(answer[:, : self.size], plain, guidance)
            return torch.cat((guided, answer[:, self.size :]), -1)

        start = torch.zeros(rows, self.size, device=hidden.device)
        noise = draws.normal(self.process.draws(), self.size).to(hidden.device) if temperature else None
        return self.process.sample(denoise, start, noise, temperature)

    def _condition(self, hidden: Tensor) -> Tensor:
        embedded: Tensor = self.condition(hidden.to(self.condition.weight.dtype))
        return embedded


def _process(config: DiffusionConfig) -> Process:
    if config.objective == "flow":
        return Flow(config.train_steps, config.sample_steps)
    return Diffusion(config.train_steps, config.sample_steps, config.learn_variance)


def build(config: DiffusionConfig, facts: HeadFacts) -> DiffusionHead:
    """Build the head with random weights."""
    return DiffusionHead(config, facts)
