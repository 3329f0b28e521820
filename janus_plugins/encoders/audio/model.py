"""The encoders of Whisper and AST (transformers) over spectrograms of different lengths."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import ASTConfig, ASTModel, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from janus_plugins.core.facts import UnderstandingFacts
from janus_plugins.core.weights import load_exactly, read_weights
from janus_plugins.encoders.audio.spec import AST_PATCH, AST_STRIDE, AudioConfig

_PREFIXES = {
    "whisper": ("model.encoder.", "encoder."),
    "ast": ("audio_spectrogram_transformer.",),
}
"""Before the encoder's names in files of the whole model."""
_AST_NAMES = {
    "encoder.layer.": "layers.",
    "attention.attention.query.": "attention.q_proj.",
    "attention.attention.key.": "attention.k_proj.",
    "attention.attention.value.": "attention.v_proj.",
    "attention.output.dense.": "attention.o_proj.",
    "intermediate.dense.": "mlp.fc1.",
    "output.dense.": "mlp.fc2.",
}
"""What a newer transformers calls modules of published files; a name stands before one that it ends in."""
_POSITIONS = {"whisper": "embed_positions.weight", "ast": "embeddings.position_embeddings"}


class AudioEncoder(nn.Module):
    """Turn spectrograms [N, frames, bins] into features [N, T, width], in the order of time.

    Every spectrogram is padded to the full length, as in the models' training; features that see only
    padding are left out of T, or zero.
    """

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = _whisper(config) if config.family == "whisper" else _ast(config)

    def forward(self, items: dict[str, Tensor]) -> Tensor:
        """Return features [N, T, width] of {"mel", "floor"}, and of "mel_lengths" where they vary."""
        mel = items["mel"]
        lengths = items.get("mel_lengths")
        frames = [mel.shape[1]] * len(mel) if lengths is None else lengths.tolist()
        full = self._padded(mel, items["floor"], lengths).to(self.trunk.dtype)
        given = full if len(full) else full.new_zeros(1, *full.shape[1:])
        features = self._in_time(given)[: len(full)]
        counts = torch.tensor([self.config.num_features(each) for each in frames], device=mel.device)
        longest = self.config.num_features(mel.shape[1])
        heard = torch.arange(longest, device=mel.device) < counts[:, None]
        return features[:, :longest] * heard[..., None]

    def _padded(self, mel: Tensor, floor: Tensor, lengths: Tensor | None) -> Tensor:
        """Return spectrograms of the full length [N, frames, bins]."""
        count, frames, bins = mel.shape
        if lengths is not None:
            heard = torch.arange(frames, device=mel.device) < lengths.to(mel.device)[:, None]
            mel = torch.where(heard[..., None], mel, floor[:, None])
        silence = floor[:, None].expand(count, self.config.frames - frames, bins)
        return torch.cat([mel, silence], dim=1)

    def _in_time(self, mel: Tensor) -> Tensor:
        if self.config.family == "whisper":
            features: Tensor = self.trunk(mel.transpose(1, 2)).last_hidden_state
            return features
        features = self.trunk(mel).last_hidden_state[:, 2:]
        # AST's patches run along time within each band; ours along the bands within each step of time.
        bands = features.reshape(len(features), self.config.rows, -1, features.shape[-1])
        return bands.transpose(1, 2).flatten(1, 2)

    def load_weights(self, source: str) -> None:
        """Load the encoder from a file of transformers, of the encoder alone or of the whole model.

        For a shorter `seconds` the first positions are kept.

        Raises:
            CheckpointError: nothing there, or keys or shapes that do not fit.
        """
        family, tensors = self.config.family, read_weights(source)
        for prefix in _PREFIXES[family]:
            found = {
                name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)
            }
            if found:
                tensors = found
                break
        if family == "ast" and hasattr(self.trunk, "layers"):
            tensors = {_renamed(name): each for name, each in tensors.items()}
        name = _POSITIONS[family]
        if name in tensors:
            tensors[name] = self._positions(tensors[name])
        load_exactly(self.trunk, tensors, source)

    def _positions(self, published: Tensor) -> Tensor:
        """Return the positions of the first seconds; where none are left over, what is published."""
        if self.config.family == "whisper":
            return published[: self.config.frames // 2]
        rows, width = self.config.rows, published.shape[-1]
        columns = (self.config.frames - AST_PATCH) // AST_STRIDE + 1
        if (published.shape[1] - 2) % rows:
            return published
        bands = published[:, 2:].reshape(1, rows, -1, width)[:, :, :columns]
        return torch.cat([published[:, :2], bands.flatten(1, 2)], dim=1)


def _renamed(name: str) -> str:
    for old, new in _AST_NAMES.items():
        name = name.replace(old, new)
    return name


def _whisper(config: AudioConfig) -> Any:
    sizes = config.sizes
    options: dict[str, Any] = {"attn_implementation": "sdpa"}
    return WhisperEncoder(
        WhisperConfig(
            d_model=sizes.width,
            encoder_layers=sizes.depth,
            encoder_attention_heads=sizes.heads,
            encoder_ffn_dim=4 * sizes.width,
            num_mel_bins=sizes.mel_bins,
            max_source_positions=config.frames // 2,
            **options,
        )
    )


def _ast(config: AudioConfig) -> Any:
    sizes = config.sizes
    options: dict[str, Any] = {"attn_implementation": "sdpa"}
    return ASTModel(
        ASTConfig(
            hidden_size=sizes.width,
            num_hidden_layers=sizes.depth,
            num_attention_heads=sizes.heads,
            intermediate_size=4 * sizes.width,
            num_mel_bins=sizes.mel_bins,
            max_length=config.frames,
            patch_size=AST_PATCH,
            frequency_stride=AST_STRIDE,
            time_stride=AST_STRIDE,
            **options,
        )
    )


def build(config: AudioConfig, facts: UnderstandingFacts) -> AudioEncoder:
    """Build the encoder with random weights."""
    return AudioEncoder(config)
