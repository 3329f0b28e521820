"""MoVQGAN through diffusers' `VQModel` with spatial norms. Source: MoVQ (2209.09002), section 3.

The quantiser's steps are written here: diffusers' reads the table of codes without running it, which
under ZeRO-3 finds nothing, and gives no code ids back.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.autoencoders.vq_model import VQModel
from torch import Tensor, nn
from torch.nn import functional

from janus_plugins.core.facts import GenerationFacts
from janus_plugins.core.weights import load_exactly, read_weights
from janus_plugins.encoders.movqgan.spec import NORM_GROUPS, MovqganConfig

_ROWS = 8192
"""Vectors that are compared with the whole codebook at a time."""


class Movqgan(nn.Module):
    """Turn pictures [N, C, S, S] into codes [N, T] and back."""

    def __init__(self, config: MovqganConfig) -> None:
        super().__init__()
        self.config = config
        down = ["AttnDownEncoderBlock2D" if attend else "DownEncoderBlock2D" for attend in config.attend]
        up = ["AttnUpDecoderBlock2D" if attend else "UpDecoderBlock2D" for attend in reversed(config.attend)]
        self.vq: Any = VQModel(
            in_channels=config.in_channels,
            out_channels=config.in_channels,
            down_block_types=tuple(down),
            up_block_types=tuple(up),
            block_out_channels=config.channels,
            layers_per_block=config.num_res_blocks,
            latent_channels=config.code_width,
            vq_embed_dim=config.code_width,
            num_vq_embeddings=config.codebook_size,
            norm_num_groups=NORM_GROUPS,
            norm_type="spatial",
        )

    def codebook(self) -> Tensor:
        """Return the codes' vectors [K, C]."""
        device = self.vq.quantize.embedding.weight.device
        table: Tensor = self.vq.quantize.embedding(torch.arange(self.config.codebook_size, device=device))
        return table

    def encode(self, items: dict[str, Tensor]) -> Tensor:
        """Return codes [N, T] (int64), row-major, of {"pixels": [N, C, S, S]} in [-1, 1]."""
        pixels = self._cast(items["pixels"])
        return self._nearest(self._vectors(pixels), self.codebook().float()).view(len(pixels), -1)

    def decode(self, codes: Tensor) -> Tensor:
        """Return pictures [N, C, S, S] in about [-1, 1] of codes [N, T]."""
        return self._pixels(self.vq.quantize.embedding(codes))

    def reconstruction_loss(self, items: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses of taking pictures to codes and back, and how many codes the batch used.

        The gradient passes the quantiser as if it were not there (straight through). "loss" is the
        weighted sum; "reconstruction" its part about pixels; the others are unweighted.
        """
        weights, pixels = self.config.loss, self._cast(items["pixels"])
        vectors, table = self._vectors(pixels), self.codebook().float()
        ids = self._nearest(vectors, table)
        chosen = table[ids]
        passed = vectors + (chosen - vectors).detach()
        made = self._pixels(passed.view(len(pixels), -1, self.config.code_width)).float()
        wanted = pixels.float()
        losses = {
            "codebook": functional.mse_loss(chosen, vectors.detach()),
            "commitment": functional.mse_loss(vectors, chosen.detach()),
            "reconstruction": weights.l1 * functional.l1_loss(made, wanted)
            + weights.l2 * functional.mse_loss(made, wanted),
        }
        loss = (
            losses["reconstruction"]
            + weights.codebook * losses["codebook"]
            + weights.commitment * losses["commitment"]
        )
        used = table.new_zeros(len(table)).index_fill_(0, ids.reshape(-1), 1).sum()
        return {"loss": loss, **losses, "codes_used": used}

    def load_weights(self, source: str) -> None:
        """Load weights of diffusers' `VQModel` from a file or a folder.

        Raises:
            CheckpointError: nothing there, or keys or shapes that do not fit.
        """
        load_exactly(self.vq, read_weights(source), source)

    def _cast(self, pixels: Tensor) -> Tensor:
        return pixels.to(self.vq.quant_conv.weight.dtype)

    def _vectors(self, pixels: Tensor) -> Tensor:
        """Return what the quantiser sees [N * T, C] (float32)."""
        hidden: Tensor = self.vq.quant_conv(self.vq.encoder(pixels))
        return hidden.permute(0, 2, 3, 1).reshape(-1, self.config.code_width).float()

    @torch.no_grad()
    def _nearest(self, vectors: Tensor, table: Tensor) -> Tensor:
        """Return the nearest row of table [K, C] to each of vectors [P, C]: [P] (int64)."""
        if not len(vectors):
            return torch.empty(0, dtype=torch.int64, device=vectors.device)
        sizes = table.square().sum(1)
        parts = [(sizes - 2 * rows @ table.T).argmin(1) for rows in torch.split(vectors, _ROWS)]
        return torch.cat(parts)

    def _pixels(self, vectors: Tensor) -> Tensor:
        """Return pictures [N, C, S, S] of code vectors [N, T, code_width]."""
        side = self.config.side
        grid = self._cast(vectors.transpose(1, 2).reshape(len(vectors), self.config.code_width, side, side))
        pixels: Tensor = self.vq.decoder(self.vq.post_quant_conv(grid), grid)
        return pixels


def build(config: MovqganConfig, facts: GenerationFacts) -> Movqgan:
    """Build the tokenizer with random weights."""
    return Movqgan(config)
