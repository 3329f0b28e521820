"""The VQ picture tokenizer: picture -> codes -> picture. Source: LlamaGen VQ-16, as Janus uses it.

Written anew, with the official module names. The official code normalises both the codes and the
vectors that it looks up; transformers' JanusVQVAE does so in decoding only, and its ids differ.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from janus_plugins.core.facts import GenerationFacts
from janus_plugins.core.weights import load_exactly, read_weights
from janus_plugins.encoders.vq import fused
from janus_plugins.encoders.vq.layers import Decoder, Encoder
from janus_plugins.encoders.vq.quantizer import Quantizer, entropy_loss
from janus_plugins.encoders.vq.spec import VqConfig

_OFFICIAL_ONLY = ("quantize.codebook_used",)
"""A record of recent codes that LlamaGen keeps for its log."""


class Vq(nn.Module):
    """Turn pictures into codes and back; see `core.contracts.GenerationEncoder`."""

    def __init__(self, config: VqConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Quantizer(config.codebook_size, config.code_width, config.revive_after)
        self.quant_conv = nn.Conv2d(config.z_channels, config.code_width, 1)
        self.post_quant_conv = nn.Conv2d(config.code_width, config.z_channels, 1)
        self._fuses = False

    def codebook(self) -> Tensor:
        """Return the codes at length 1 [K, C]."""
        table: Tensor = self.quantize.embedding()
        return table

    def encode(self, items: dict[str, Tensor]) -> Tensor:
        """Return codes [N, T] (int64), row-major, of {"pixels": [N, C, S, S]} in [-1, 1]."""
        pixels = self._cast(items["pixels"])
        ids = self.quantize.nearest(self._vectors(pixels), self.codebook().float())
        return ids.view(len(pixels), -1)

    def features(self, items: dict[str, Tensor]) -> Tensor:
        """Return the vectors of a picture's codes [N, T, code_width], row-major.

        Where the tokenizer learns by them, the gradient reaches the chosen codes, and passes the
        quantiser to the encoder as if it were not there.
        """
        pixels = self._cast(items["pixels"])
        vectors, table = self._vectors(pixels), self.codebook().float()
        chosen = table[self.quantize.nearest(vectors, table)] + (vectors - vectors.detach())
        return self._cast(chosen.view(len(pixels), -1, self.config.code_width))

    def decode(self, codes: Tensor) -> Tensor:
        """Return pictures [N, C, S, S] in about [-1, 1] of codes [N, T]."""
        return self._pixels(self.codebook()[codes])

    def reconstruction_loss(self, items: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses of taking pictures to codes and back, and how many codes the batch used.

        The gradient passes the quantiser as if it were not there (straight through). "loss" is the
        weighted sum; "reconstruction" its part about pixels; the others are unweighted.
        """
        pixels = self._cast(items["pixels"])
        passed, losses, used = self._quantised(pixels)
        losses["reconstruction"] = self._pixel_loss(self._pixels(passed).float(), pixels.float())
        return {"loss": self._weighted(losses), **losses, "codes_used": used}

    def compile_blocks(self) -> None:
        """Fuse what lies between the encoder's convolutions, on a GPU and while it does not learn."""
        self._fuses = True

    def load_weights(self, source: str) -> None:
        """Load weights under the official names from a file, a folder or a hub id.

        Raises:
            CheckpointError: nothing there, or keys or shapes that do not fit.
        """
        load_exactly(
            self, read_weights(source), source, drop=_OFFICIAL_ONLY, optional=("quantize.unused_for",)
        )

    def _cast(self, pixels: Tensor) -> Tensor:
        return pixels.to(self.quant_conv.weight.dtype)

    def _quantised(self, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return code vectors passed straight through [N, T, C], the quantiser's losses, the codes used."""
        vectors, table = self._vectors(pixels), self.codebook().float()
        ids = self.quantize.nearest(vectors, table)
        losses = self.quantize.losses(vectors, table, ids)
        if self.config.loss.entropy:
            losses["entropy"] = entropy_loss(vectors, table)
        passed = vectors + (table[ids] - vectors).detach()
        used = table.new_zeros(len(table)).index_fill_(0, ids.reshape(-1), 1).sum()
        return passed.view(len(pixels), -1, self.config.code_width), losses, used

    def _weighted(self, losses: dict[str, Tensor]) -> Tensor:
        """Return the sum of all losses by the weights of the options; "reconstruction" has its own inside."""
        loss: Tensor = losses["reconstruction"] + sum(
            getattr(self.config.loss, name) * value
            for name, value in losses.items()
            if name != "reconstruction"
        )
        return loss

    def _vectors(self, pixels: Tensor) -> Tensor:
        """Return what the quantiser sees, at length 1 [N * T, C] (float32)."""
        if self._fuses and not torch.is_grad_enabled() and fused.fits(self.encoder, pixels):
            hidden = self.quant_conv(fused.encode(self.encoder, pixels))
        else:
            hidden = self.quant_conv(self.encoder(pixels))
        flat = hidden.permute(0, 2, 3, 1).reshape(-1, self.config.code_width)
        return functional.normalize(flat.float(), dim=-1)

    def _pixels(self, vectors: Tensor) -> Tensor:
        """Return pictures [N, C, S, S] of code vectors [N, T, code_width]."""
        side = self.config.side
        grid = vectors.transpose(1, 2).reshape(len(vectors), -1, side, side)
        pixels: Tensor = self.decoder(self.post_quant_conv(self._cast(grid)))
        return pixels

    def _pixel_loss(self, made: Tensor, wanted: Tensor) -> Tensor:
        weights = self.config.loss
        squared, absolute = functional.mse_loss(made, wanted), functional.l1_loss(made, wanted)
        return weights.l2 * squared + weights.l1 * absolute


def build(config: VqConfig, facts: GenerationFacts) -> Vq:
    """Build the tokenizer with random weights."""
    return Vq(config)
