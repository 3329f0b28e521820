"""The KL autoencoder through diffusers' `AutoencoderKL`: picture -> latents -> picture.

Source: Rombach et al. 2022 (arXiv 2112.10752), section 3.1 and appendix G; places joined to patches as in
MAR (arXiv 2406.11838). diffusers' own `encode` and `decode` are not called: under ZeRO-3 a part runs through
the `forward` of its submodules.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional

from janus_plugins.core.errors import CheckpointError
from janus_plugins.core.facts import GenerationFacts
from janus_plugins.core.streams import content_seeds, normals
from janus_plugins.core.weights import load_exactly, read_description, read_weights
from janus_plugins.encoders.vae.layouts import to_diffusers
from janus_plugins.encoders.vae.scale import LatentScale
from janus_plugins.encoders.vae.spec import VaeConfig

_LOG_VARIANCES = (-30.0, 20.0)
"""Bounds of the logarithm of a latent's variance, as in the original."""


class Vae(nn.Module):
    """Turn pictures [N, C, S, S] into latents [N, T, width] and back."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        plain = len(config.channels) - 1
        down = ["DownEncoderBlock2D"] * plain + [f"{'Attn' * config.attend_encoder}DownEncoderBlock2D"]
        up = [f"{'Attn' * config.attend_decoder}UpDecoderBlock2D"] + ["UpDecoderBlock2D"] * plain
        self.vae: Any = AutoencoderKL(
            in_channels=config.in_channels,
            out_channels=config.in_channels,
            down_block_types=tuple(down),
            up_block_types=tuple(up),
            block_out_channels=config.channels,
            layers_per_block=config.num_res_blocks,
            latent_channels=config.latent_channels,
            norm_num_groups=config.norm_groups,
            use_quant_conv=config.quant_conv,
            use_post_quant_conv=config.quant_conv,
        )
        self.scale = LatentScale(config.latent_channels, config.shift, config.scale)

    def encode(self, items: dict[str, Tensor]) -> Tensor:
        """Return latents [N, T, width] (float32), row-major, of {"pixels": [N, C, S, S]} in [-1, 1]."""
        mean, log_variance = self._posterior(items["pixels"])
        if self.config.latents == "sample":
            seeds = content_seeds(items["pixels"])
            noise = normals(seeds, 0, mean[0].numel()).view(mean.shape)
            mean = mean + (0.5 * log_variance).exp() * noise
        return self._joined(self.scale(mean))

    def decode(self, codes: Tensor) -> Tensor:
        """Return pictures [N, C, S, S] in about [-1, 1] of latents [N, T, width]."""
        return self._pixels(self.scale(self._parted(codes), back=True))

    def reconstruction_loss(self, items: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses of taking pictures to latents and back.

        Latents are drawn around their means by torch's random numbers; in evaluation they are the means.
        "loss" is "reconstruction", the weighted error of a pixel, and the weighted "kl" of a latent's number
        times how many of these there are for each number of the picture. "deviation" is that of all latents
        before they are scaled.
        """
        weights, pixels = self.config.loss, items["pixels"]
        mean, log_variance = self._posterior(pixels)
        variance = log_variance.exp()
        drawn = mean
        if self.training:
            self.scale.measure(mean, variance if self.config.latents == "sample" else None)
            drawn = mean + variance.sqrt() * torch.randn_like(mean)
        made, wanted = self._pixels(drawn).float(), pixels.float()
        reconstruction = weights.l1 * functional.l1_loss(made, wanted)
        reconstruction = reconstruction + weights.l2 * functional.mse_loss(made, wanted)
        kl = 0.5 * (mean.square() + variance - 1 - log_variance).mean()
        loss = reconstruction + weights.kl * kl * (mean[0].numel() / pixels[0].numel())
        deviation = mean.detach().std(correction=0)
        return {"loss": loss, "reconstruction": reconstruction, "kl": kl, "deviation": deviation}

    def load_weights(self, source: str) -> None:
        """Load diffusers' or the original code's weights from a file, a folder or a hub id.

        Raises:
            CheckpointError: nothing there, keys or shapes that do not fit, or no scale.
        """
        load_exactly(self.vae, to_diffusers(read_weights(source), len(self.config.channels)), source)
        description = read_description(source)
        if self.config.scale is None and "scaling_factor" not in description:
            raise CheckpointError(
                f"{source!r} has no config.json that says its scaling_factor; set the option scale "
                "(KL-16: 0.2325, Stable Diffusion 1 and 2: 0.18215, XL: 0.13025)"
            )
        self.scale.publish(description)

    def _posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and logarithm of the variance of the latents [N, C, H, W] (float32)."""
        hidden = self.vae.encoder(pixels.to(self.vae.decoder.conv_in.weight.dtype))
        if self.config.quant_conv:
            hidden = self.vae.quant_conv(hidden)
        mean, log_variance = hidden.float().chunk(2, dim=1)
        return mean, log_variance.clamp(*_LOG_VARIANCES)

    def _pixels(self, latents: Tensor) -> Tensor:
        """Return pictures of the autoencoder's own latents [N, C, H, W]."""
        latents = latents.to(self.vae.decoder.conv_in.weight.dtype)
        if self.config.quant_conv:
            latents = self.vae.post_quant_conv(latents)
        pixels: Tensor = self.vae.decoder(latents)
        return pixels

    def _joined(self, latents: Tensor) -> Tensor:
        """Return [N, T, C p p] of [N, C, side p, side p]: a patch's places one after another, by channel."""
        joined = functional.pixel_unshuffle(latents, self.config.patch)
        return joined.flatten(2).transpose(1, 2)

    def _parted(self, joined: Tensor) -> Tensor:
        """Undo `_joined`."""
        side = self.config.side
        grid = joined.transpose(1, 2).reshape(len(joined), -1, side, side)
        return functional.pixel_shuffle(grid, self.config.patch)


def build(config: VaeConfig, facts: GenerationFacts) -> Vae:
    """Build the tokenizer with random weights."""
    return Vae(config)
