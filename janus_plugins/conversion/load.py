"""Load a foreign checkpoint as a model, without writing anything."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from janus_plugins.conversion.checkpoint import open_checkpoint
from janus_plugins.model.empty import Filler
from janus_plugins.model.unified import UnifiedModel

_log = logging.getLogger(__name__)


def load_foreign(folder: Path, device: torch.device | str = "cpu") -> UnifiedModel:
    """Load an official or a transformers folder, each weight in the precision that it has there.

    Raises:
        CheckpointError: it is damaged, or its tensors do not fit its config.
    """
    checkpoint = open_checkpoint(folder)
    for note in checkpoint.notes:
        _log.warning("%s: %s", folder, note)
    filler = Filler(checkpoint.model)
    for name in checkpoint.entries:
        filler.put(name, checkpoint.get(name))
    return checkpoint.model.to(device).eval()
