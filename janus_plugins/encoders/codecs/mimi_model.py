"""Mimi through transformers. Source: Moshi (2410.00037), section 3.3."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MimiConfig as PublishedConfig, MimiModel

from janus_plugins.core.facts import GenerationFacts
from janus_plugins.core.weights import load_exactly, read_weights
from janus_plugins.encoders.codecs.mimi_spec import HALVING, MimiConfig

_PLACES = {
    "encoder.layers.": "encoder.encoder_seanet.layers.",
    "encoder_transformer.": "encoder.encoder_transformer.",
    "downsample.": "encoder.downsample.",
    "upsample.": "decoder.upsample.",
    "decoder_transformer.": "decoder.decoder_transformer.",
    "decoder.layers.": "decoder.decoder_seanet.layers.",
}
"""Where a newer transformers has, in two halves, the modules that published files name outright."""

_EPSILON = 1e-5
"""Least count of a code's uses that its sum is divided by. Source: transformers, MimiEuclideanCodebook."""


class Mimi(nn.Module):
    """Turn sound [N, 1, S] into codes [N, T, Q] and back."""

    def __init__(self, config: MimiConfig, facts: GenerationFacts) -> None:
        super().__init__()
        self.config, self.shape = config, facts.shape
        published: dict[str, Any] = {
            "sampling_rate": config.rate,
            "hidden_size": config.width,
            "num_filters": config.filters,
            "upsampling_ratios": list(config.ratios),
            "codebook_size": config.codebook_size,
            "codebook_dim": config.code_width,
            "vector_quantization_hidden_dimension": config.code_width,
            "num_quantizers": config.codebooks,
            "upsample_groups": config.width,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads,
            "num_key_value_heads": config.num_heads,
            "intermediate_size": config.feed,
            "sliding_window": config.window,
        }
        self.codec: Any = MimiModel(PublishedConfig(**published))
        self.halves = hasattr(self.codec.encoder, "encoder_seanet")
        if self.halves:
            assert self.codec.config.latent_stride == HALVING
        for _, layers in self._quantizers():
            for layer in layers:
                # transformers leaves the codebooks at zero, where every sound has the same codes.
                layer.codebook.embed_sum.normal_(std=0.1)

    def codebook(self) -> Tensor:
        """Return what each code in use adds to a frame [Q, K, width] (of one codebook [K, width])."""
        vectors = [
            quantizer.output_proj(_vectors(layer).T[None])[0].T if quantizer.output_proj else _vectors(layer)
            for quantizer, layers in self._quantizers()
            for layer in layers
        ]
        return torch.stack(vectors) if len(vectors) > 1 else vectors[0]

    def encode(self, items: dict[str, Tensor]) -> Tensor:
        """Return codes [N, T, Q] (int64) of {"samples": [N, 1, S]}, the semantic one first."""
        samples = items["samples"].to(self._dtype)
        if not len(samples):
            return torch.empty(0, *self.shape, dtype=torch.int64, device=samples.device)
        frames = self._frames(samples)
        codes = []
        for quantizer, layers in self._quantizers():
            residual = quantizer.input_proj(frames) if quantizer.input_proj else frames
            residual = residual.transpose(1, 2)
            for layer in layers:
                vectors = _vectors(layer)
                codes.append(torch.cdist(residual.float(), vectors.float()[None]).argmin(-1))
                residual = residual - vectors[codes[-1]]
        return torch.stack(codes, dim=2).view(-1, *self.shape)

    def decode(self, codes: Tensor) -> Tensor:
        """Return sound [N, 1, S] of codes [N, T, Q]."""
        found = codes.reshape(len(codes), self.config.frames, self.config.num_codebooks)
        frames, place = [], 0
        for quantizer, layers in self._quantizers():
            chosen = [_vectors(layer)[found[:, :, place + q]] for q, layer in enumerate(layers)]
            summed = torch.stack(chosen).sum(0).transpose(1, 2)
            frames.append(quantizer.output_proj(summed) if quantizer.output_proj else summed)
            place += len(chosen)
        return self._sound(torch.stack(frames).sum(0))[..., : self.config.samples]

    def load_weights(self, source: str) -> None:
        """Load weights of transformers' Mimi from a file, a folder or a hub id.

        Raises:
            CheckpointError: nothing there, or keys or shapes that do not fit.
        """
        read = read_weights(source)
        tensors = {_renamed(name): each for name, each in read.items()} if self.halves else read
        load_exactly(self.codec, tensors, source)

    def _frames(self, samples: Tensor) -> Tensor:
        """Return what codes are chosen for [N, width, T]."""
        codec = self.codec
        frames: Tensor
        if self.halves:
            frames = codec.encoder(samples).latents
        else:
            frames = codec.downsample(_along_time(codec.encoder_transformer, codec.encoder(samples)))
        return frames

    def _sound(self, frames: Tensor) -> Tensor:
        """Return the sound of frames [N, width, T]."""
        codec = self.codec
        sound: Tensor
        if self.halves:
            sound = codec.decoder(frames).audio_values
        else:
            sound = codec.decoder(_along_time(codec.decoder_transformer, codec.upsample(frames)))
        return sound

    def _quantizers(self) -> Iterator[tuple[Any, Any]]:
        """Yield the semantic and the acoustic quantizer with those of its layers that are in use."""
        split, count = self.codec.quantizer, self.config.num_codebooks
        semantic, acoustic = (
            split.semantic_residual_vector_quantizer,
            split.acoustic_residual_vector_quantizer,
        )
        yield semantic, semantic.layers
        if count > 1:
            yield acoustic, acoustic.layers[: count - 1]

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.codec.parameters()).dtype  # type: ignore[no-any-return]


def _vectors(layer: Any) -> Tensor:
    """Return a codebook's vectors [K, c]."""
    # transformers' own property keeps a copy of them, which outlives a change of the dtype.
    book = layer.codebook
    vectors: Tensor = book.embed_sum / book.cluster_usage.clamp(min=_EPSILON)[:, None]
    return vectors


def _along_time(transformer: Any, frames: Tensor) -> Tensor:
    """Run a transformer over frames [N, width, T]."""
    result: Tensor = transformer(frames.transpose(1, 2), return_dict=True).last_hidden_state
    return result.transpose(1, 2)


def _renamed(name: str) -> str:
    for old, new in _PLACES.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def build(config: MimiConfig, facts: GenerationFacts) -> Mimi:
    """Build the codec with random weights."""
    return Mimi(config, facts)
