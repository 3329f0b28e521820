"""The encoders of brain signals over recordings of different lengths, and their weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from janus_plugins.core.facts import UnderstandingFacts
from janus_plugins.core.weights import load_exactly, read_weights
from janus_plugins.encoders.eeg.eegnet import EegNet
from janus_plugins.encoders.eeg.labram import Labram
from janus_plugins.encoders.eeg.spec import EegConfig

_PREFIXES = ("student.", "trunk.")
_ENDS = {"gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
"""LaBraM's names of a block's scales."""
_UNUSED = ("mask_token", "lm_head.", "head.", "projection_head.")


class EegEncoder(nn.Module):
    """Turn windows [N, A, C, S] into features [N, T, width]; zero behind each recording's last."""

    def __init__(self, config: EegConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = Labram(config) if config.model == "labram" else EegNet(config)

    def forward(self, items: dict[str, Tensor]) -> Tensor:
        """Return features [N, T, width] of {"signal"}, and of "signal_lengths" windows where they vary."""
        signal = items["signal"].to(next(self.trunk.parameters()).dtype)
        count, windows = signal.shape[:2]
        given = signal if count else signal.new_zeros(1, *signal.shape[1:])
        lengths = items.get("signal_lengths")
        if lengths is None:
            features: Tensor = self.trunk(given, None)
            return features[:count]
        there = torch.arange(windows, device=signal.device) < lengths.to(signal.device)[:, None]
        kept = there.repeat_interleave(self.config.per_window, dim=1)
        if not count:
            there = there.new_ones(1, windows)
        return self.trunk(given, there)[:count] * kept[..., None]  # type: ignore[no-any-return]

    def load_weights(self, source: str) -> None:
        """Load LaBraM's published weights, or this module's own names.

        For fewer `max_windows` the first places in time are kept.

        Raises:
            CheckpointError: nothing there, or keys or shapes that do not fit.
        """
        tensors = read_weights(source)
        for prefix in _PREFIXES:
            found = {
                name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)
            }
            tensors = found or tensors
        tensors = {_renamed(name): each for name, each in tensors.items() if not name.startswith(_UNUSED)}
        if "time_embed" in tensors:
            tensors["time_embed"] = tensors["time_embed"][:, : self.config.max_windows]
        load_exactly(self.trunk, tensors, source)


def _renamed(name: str) -> str:
    start, dot, end = name.rpartition(".")
    return start + dot + _ENDS.get(end, end)


def build(config: EegConfig, facts: UnderstandingFacts) -> EegEncoder:
    """Build the encoder with random weights."""
    return EegEncoder(config)
