"""A small sound codec that is trained here: one convolution to frames, residual blocks, residual codebooks.

All layers but the first and the last run at the rate of frames, as in Conv-TasNet (1809.07454), so that it
trains in a minute on one core; the quantizer is SoundStream's (2107.03312, section III-C).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from janus_plugins.core.facts import GenerationFacts
from janus_plugins.core.weights import load_exactly, read_weights
from janus_plugins.encoders.codecs.residual import ResidualQuantizer
from janus_plugins.encoders.codecs.rvq_spec import RvqConfig


class Block(nn.Module):
    """Look at a frame and its two neighbours [N, C, T]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide, self.out = nn.Conv1d(width, width, 3, padding=1), nn.Conv1d(width, width, 1)

    def forward(self, frames: Tensor) -> Tensor:
        """Return frames [N, C, T]."""
        changed: Tensor = frames + self.out(functional.gelu(self.wide(functional.gelu(frames))))
        return changed


class Rvq(nn.Module):
    """Turn sound [N, 1, S] into codes [N, T, Q] and back."""

    def __init__(self, config: RvqConfig, facts: GenerationFacts) -> None:
        super().__init__()
        self.config, self.shape = config, facts.shape
        width, stride, blocks = config.width, config.stride, range(config.num_blocks)
        # Windows of two frames, half overlapping.
        kernel, padding = 2 * stride, stride // 2
        self.encoder = nn.Sequential(
            nn.Conv1d(1, width, kernel, stride, padding),
            *(Block(width) for _ in blocks),
            nn.Conv1d(width, width, 1),
        )
        self.quantizer = ResidualQuantizer(
            config.num_codebooks, config.codebook_size, width, config.decay, config.restart_below
        )
        self.decoder = nn.Sequential(
            nn.Conv1d(width, width, 3, padding=1),
            *(Block(width) for _ in blocks),
            nn.ConvTranspose1d(width, 1, kernel, stride, padding),
        )

    def codebook(self) -> Tensor:
        """Return the vectors of the codebooks [Q, K, width] (of one codebook [K, width])."""
        vectors = self.quantizer.vectors
        return vectors if len(vectors) > 1 else vectors[0]

    def encode(self, items: dict[str, Tensor]) -> Tensor:
        """Return codes [N, T, Q] (int64) of {"samples": [N, 1, S]}."""
        samples = self._cast(items["samples"])
        codes: Tensor = self.quantizer(self._frames(samples))[0]
        return codes.view(len(samples), *self.shape)

    def decode(self, codes: Tensor) -> Tensor:
        """Return sound [N, 1, S] of codes [N, T, Q]."""
        config = self.config
        found = codes.reshape(-1, config.num_codebooks)
        return self._sound(self.quantizer.summed(found).view(len(codes), config.frames, config.width))

    def reconstruction_loss(self, items: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses of taking sound to codes and back, and how many codes the batch used.

        The gradient passes the quantizer as if it were not there (straight through). "loss" is the weighted
        sum of the others. In training the codebooks move, too.
        """
        samples = self._cast(items["samples"])
        frames = self._frames(samples)
        codes, chosen = self.quantizer(frames, learn=self.training)
        passed = frames + (chosen - frames).detach()
        made = self._sound(passed.view(len(samples), self.config.frames, -1)).float()
        losses = {
            "samples": functional.l1_loss(made, samples.float()),
            "spectra": self._spectra(made[:, 0], samples[:, 0].float()),
            "commitment": functional.mse_loss(frames.float(), chosen.float()),
        }
        weights = self.config.loss
        loss: Tensor = torch.stack([getattr(weights, name) * each for name, each in losses.items()]).sum()
        used = loss.new_zeros(codes.shape[1], self.config.codebook_size).scatter_(1, codes.T, 1)
        return {"loss": loss, **losses, "codes_used": used.sum(1).mean()}

    def load_weights(self, source: str) -> None:
        """Load weights that were trained here, from a file or a folder.

        Raises:
            CheckpointError: nothing there, or keys or shapes that do not fit.
        """
        load_exactly(self, read_weights(source), source)

    def _cast(self, samples: Tensor) -> Tensor:
        return samples.to(next(self.encoder.parameters()).dtype)

    def _frames(self, samples: Tensor) -> Tensor:
        """Return frames [N * T, C] of samples [N, 1, S]."""
        frames: Tensor = self.encoder(samples)
        return frames.transpose(1, 2).flatten(0, 1)

    def _sound(self, frames: Tensor) -> Tensor:
        """Return sound [N, 1, S] of frames [N, T, C]."""
        sound: Tensor = self.decoder(self._cast(frames).transpose(1, 2))
        return sound

    def _spectra(self, made: Tensor, wanted: Tensor) -> Tensor:
        """Return the mean absolute error of the spectra of [N, S], at about the scale of samples."""
        losses = []
        for size in self.config.loss.windows:
            window = torch.hann_window(size, device=made.device)
            both = torch.cat((made, wanted))
            one, other = torch.stft(both, size, size // 4, window=window, return_complex=True).abs().chunk(2)
            losses.append(functional.l1_loss(one, other) * 2 / size**0.5)
        return torch.stack(losses).mean()


def build(config: RvqConfig, facts: GenerationFacts) -> Rvq:
    """Build the codec with random weights."""
    return Rvq(config, facts)
