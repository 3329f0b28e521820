"""A KL autoencoder in the original code's layout, out of the VQ tokenizer's blocks: another implementation."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from janus_plugins.encoders.vq.layers import Decoder, Encoder
from janus_plugins.encoders.vq.spec import VqConfig

LATENT = 4


def _sizes(channels: int) -> VqConfig:
    return VqConfig(
        image_size=8, channels=8, multipliers=(1, 2), num_res_blocks=1, z_channels=channels, norm_groups=4
    )


class Original(nn.Module):
    """Hold what LDM's `AutoencoderKL` holds: attention in the lowest level of both sides."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.encoder, self.decoder = Encoder(_sizes(2 * LATENT)), Decoder(_sizes(LATENT))
        self.quant_conv = nn.Conv2d(2 * LATENT, 2 * LATENT, 1)
        self.post_quant_conv = nn.Conv2d(LATENT, LATENT, 1)

    def mean(self, pixels: Tensor) -> Tensor:
        moments: Tensor = self.quant_conv(self.encoder(pixels))
        return moments[:, :LATENT]

    def decode(self, latents: Tensor) -> Tensor:
        pixels: Tensor = self.decoder(self.post_quant_conv(latents))
        return pixels

    def published(self) -> dict[str, Any]:
        """Return the weights under the original names; its decoder counts levels from the full picture on."""
        return {_original(name): value for name, value in self.state_dict().items()}


def _original(name: str) -> str:
    name = re.sub(r"encoder\.conv_blocks\.(\d+)", r"encoder.down.\1", name)
    name = re.sub(r"decoder\.conv_blocks\.(\d+)", lambda found: f"decoder.up.{1 - int(found[1])}", name)
    name = name.replace(".res.", ".block.")
    for index, block in enumerate(("block_1", "attn_1", "block_2")):
        name = name.replace(f".mid.{index}.", f".mid.{block}.")
    return name
