"""Random numbers that can be stopped and gone on with: Python's, numpy's, torch's, of every rank."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from janus_plugins.model.tensor_file import write_tensors


def seed_all(*parts: object) -> None:
    """Seed every generator from the given values (run seed, stage name, rank)."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    seed = int.from_bytes(digest[:8], "little") >> 1
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def read_state() -> dict[str, Tensor]:
    """Return the state of every generator as plain tensors."""
    version, words, spare = random.getstate()
    legacy: Any = np.random.get_state(legacy=True)
    _, keys, position, has_gauss, gauss = legacy
    state = {
        "python": torch.tensor([version, *words], dtype=torch.int64),
        "python_spare": torch.tensor([] if spare is None else [spare], dtype=torch.float64),
        "numpy": torch.from_numpy(keys.astype(np.int64)),
        "numpy_position": torch.tensor([position, has_gauss], dtype=torch.int64),
        "numpy_spare": torch.tensor([gauss], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def write_state(state: dict[str, Tensor]) -> None:
    """Put every generator into a state that `read_state` returned."""
    version, *words = state["python"].tolist()
    spare: list[float] = state["python_spare"].tolist()
    random.setstate((version, tuple(words), spare[0] if spare else None))
    position, has_gauss = state["numpy_position"].tolist()
    keys = state["numpy"].numpy().astype(np.uint32)
    legacy: Any = ("MT19937", keys, position, has_gauss, state["numpy_spare"].item())
    np.random.set_state(legacy)
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def save_state(path: Path) -> None:
    """Write the state of every generator to a safetensors file.

    Raises:
        OSError: the disk is full.
    """
    write_tensors(read_state(), path)


def load_state(path: Path) -> None:
    """Go on from a file that `save_state` wrote."""
    write_state(load_file(path))


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put every generator back afterwards, whatever the body drew."""
    before = read_state()
    try:
        yield
    finally:
        write_state(before)
