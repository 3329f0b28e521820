"""The Descript Audio Codec through transformers: codes are looked up in few dimensions, at length 1.

Source: High-Fidelity Audio Compression with Improved RVQGAN (2306.06546), section 3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DacConfig as PublishedConfig, DacModel

from janus_plugins.core.facts import GenerationFacts
from janus_plugins.core.weights import load_exactly, read_weights
from janus_plugins.encoders.codecs.dac_spec import DacConfig


class Dac(nn.Module):
    """Turn sound [N, 1, S] into codes [N, T, Q] and back."""

    def __init__(self, config: DacConfig, facts: GenerationFacts) -> None:
        super().__init__()
        self.config, self.shape = config, facts.shape
        published: dict[str, Any] = {
            "encoder_hidden_size": config.encoder_width,
            "decoder_hidden_size": config.decoder_width,
            "downsampling_ratios": list(config.ratios),
            "n_codebooks": config.codebooks,
            "codebook_size": config.codebook_size,
            "codebook_dim": config.code_width,
            "sampling_rate": config.rate,
        }
        self.codec: Any = DacModel(PublishedConfig(**published))
        made = self.codec.config.hidden_size
        assert made == config.width, f"transformers made frames of {made}, not {config.width}"

    def codebook(self) -> Tensor:
        """Return what each code in use adds to a frame [Q, K, width] (of one codebook [K, width])."""
        vectors = [self._added(layer, self._table(layer)[None])[0].T for layer in self._layers()]
        return torch.stack(vectors) if len(vectors) > 1 else vectors[0]

    def encode(self, items: dict[str, Tensor]) -> Tensor:
        """Return codes [N, T, Q] (int64) of {"samples": [N, 1, S]}."""
        samples = items["samples"].to(self._dtype)
        if not len(samples):
            return torch.empty(0, *self.shape, dtype=torch.int64, device=samples.device)
        residual = self.codec.encoder(samples)
        codes = []
        for layer in self._layers():
            # Not by transformers' own method: it reads the table past the module that owns it (ZeRO-3).
            table = self._table(layer)
            seen = functional.normalize(layer.in_proj(residual).transpose(1, 2).float(), dim=-1)
            found = (seen @ functional.normalize(table.float(), dim=-1).T).argmax(-1)
            residual = residual - self._added(layer, table[found])
            codes.append(found)
        return torch.stack(codes, dim=2).view(-1, *self.shape)

    def decode(self, codes: Tensor) -> Tensor:
        """Return sound [N, 1, S] of codes [N, T, Q]."""
        config = self.config
        found = codes.reshape(len(codes), config.frames, config.num_codebooks)
        frames = torch.stack(
            [self._added(layer, layer.codebook(found[:, :, q])) for q, layer in enumerate(self._layers())]
        ).sum(0)
        sound: Tensor = self.codec.decoder(frames)
        # Where a stride is odd the decoder loses some samples of the last frame.
        return functional.pad(sound, (0, config.samples - sound.shape[-1]))

    def load_weights(self, source: str) -> None:
        """Load weights of transformers' DAC from a file, a folder or a hub id.

        Raises:
            CheckpointError: nothing there, or keys or shapes that do not fit.
        """
        load_exactly(self.codec, read_weights(source), source)

    def _table(self, layer: Any) -> Tensor:
        table: Tensor = layer.codebook(torch.arange(self.config.codebook_size, device=self._device))
        return table

    @staticmethod
    def _added(layer: Any, vectors: Tensor) -> Tensor:
        """Return what code vectors [N, T, c] add to the frames [N, width, T]."""
        added: Tensor = layer.out_proj(vectors.transpose(1, 2))
        return added

    def _layers(self) -> Any:
        return self.codec.quantizer.quantizers[: self.config.num_codebooks]

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.codec.parameters()).dtype  # type: ignore[no-any-return]

    @property
    def _device(self) -> torch.device:
        return next(self.codec.parameters()).device  # type: ignore[no-any-return]


def build(config: DacConfig, facts: GenerationFacts) -> Dac:
    """Build the codec with random weights."""
    return Dac(config, facts)
