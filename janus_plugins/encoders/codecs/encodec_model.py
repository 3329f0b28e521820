"""EnCodec through transformers. Source: High Fidelity Neural Audio Compression (2210.13438), section 3."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import EncodecConfig as PublishedConfig, EncodecModel

from janus_plugins.core.facts import GenerationFacts
from janus_plugins.core.weights import load_exactly, read_weights
from janus_plugins.encoders.codecs.encodec_spec import EncodecConfig

_ENDS = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
"""Names that older files give the two parts of a normalised weight."""


class Encodec(nn.Module):
    """Turn sound [N, 1, S] into codes [N, frames * codebooks], or frames [N, frames, codebooks], and back."""

    def __init__(self, config: EncodecConfig) -> None:
        super().__init__()
        self.config = config
        frame_rate = -(-config.rate // config.hop)
        bits = (config.codebook_size - 1).bit_length()
        published: dict[str, Any] = {
            # EnCodec counts codebooks by their bandwidth in kbit/s; the half guards its rounding down.
            "target_bandwidths": [(config.codebooks + 0.5) * frame_rate * bits / 1000],
            "sampling_rate": config.rate,
            "hidden_size": config.width,
            "num_filters": config.filters,
            "upsampling_ratios": list(config.ratios),
            "codebook_size": config.codebook_size,
            "num_lstm_layers": config.num_lstm_layers,
        }
        self.codec: Any = EncodecModel(PublishedConfig(**published))
        layers: Any = self.codec.quantizer.layers
        for layer in layers:
            # transformers leaves the codebooks at zero, where every sound has the same codes.
            layer.codebook.embed.normal_(std=0.1)
        made = len(layers)
        assert made == config.codebooks, f"transformers made {made} codebooks of {config.codebooks}"

    def codebook(self) -> Tensor:
        """Return the vectors of the codebooks in use [Q, K, width]; of a line all together [Q * K, width]."""
        vectors = torch.stack([layer.codebook.embed for layer in self._layers()])
        return vectors.flatten(0, 1) if self.config.facts().codebooks == 1 else vectors

    def encode(self, items: dict[str, Tensor]) -> Tensor:
        """Return codes (int64), frame by frame, of {"samples": [N, 1, S]}."""
        samples = items["samples"].to(self._dtype)
        config, shape = self.config, self.config.facts().shape
        if not len(samples):
            return torch.empty(0, *shape, dtype=torch.int64, device=samples.device)
        residual = self.codec.encoder(samples)
        codes = []
        for place, layer in enumerate(self._layers()):
            found = layer.encode(residual)
            residual = residual - layer.decode(found)
            codes.append(found + place * config.codebook_size if config.layout == "line" else found)
        return torch.stack(codes, dim=2).view(-1, *shape)

    def decode(self, codes: Tensor) -> Tensor:
        """Return sound [N, 1, S] of codes.

        In a line, a code of another codebook than its place's counts as the same number in the right one.
        """
        config = self.config
        found = codes.reshape(len(codes), config.frames, config.num_codebooks) % config.codebook_size
        frames = torch.stack(
            [layer.decode(found[:, :, place]) for place, layer in enumerate(self._layers())]
        ).sum(0)
        sound: Tensor = self.codec.decoder(frames.to(self._dtype))
        return sound[..., : config.samples]

    def load_weights(self, source: str) -> None:
        """Load weights of transformers' EnCodec from a file, a folder or a hub id.

        Raises:
            CheckpointError: nothing there, or keys or shapes that do not fit.
        """
        tensors = {_renamed(name): each for name, each in read_weights(source).items()}
        load_exactly(self.codec, tensors, source)

    def _layers(self) -> Any:
        return self.codec.quantizer.layers[: self.config.num_codebooks]

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.codec.parameters()).dtype  # type: ignore[no-any-return]


def _renamed(name: str) -> str:
    start, dot, end = name.rpartition(".")
    return start + dot + _ENDS.get(end, end)


def build(config: EncodecConfig, facts: GenerationFacts) -> Encodec:
    """Build the codec with random weights."""
    return Encodec(config)
