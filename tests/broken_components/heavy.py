"""A config whose module imports torch: listing plugins would take seconds."""

import torch

from .spec import EncoderConfig


class HeavyConfig(EncoderConfig):
    seed: int = torch.iinfo(torch.int8).max
