"""Turn any item whatsoever into the same 64 numbers each time, for the partners' encoders."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from janus_plugins.core.errors import BadSample
from janus_plugins.core.media import ImageProcessor
from janus_plugins.testing.partners import NUMBERS


class PartnerProcessor:
    """Turn arrays, pictures, bytes and files into {"values": [64] float32}."""

    suffix = ".txt"

    def __init__(self, config: Any) -> None:
        self.tokens = int(config.facts().tokens)

    def __call__(self, value: object) -> dict[str, np.ndarray]:
        """Return numbers that depend on the item alone."""
        return {"values": _numbers(value)}

    def num_tokens(self, arrays: Mapping[str, np.ndarray]) -> int:
        """Answer the fixed number of tokens."""
        return self.tokens

    def dummy(self) -> dict[str, np.ndarray]:
        """Return zeros."""
        return {"values": np.zeros(NUMBERS, np.float32)}

    def restore(self, decoded: np.ndarray) -> str:
        """Return the numbers as text."""
        return " ".join(f"{number:.3f}" for number in np.ravel(decoded))

    def write(self, artefact: str, path: str, metadata: Mapping[str, str]) -> None:
        """Write the text, the metadata in front of it."""
        lines = [f"# {key}: {text}" for key, text in metadata.items()]
        Path(path).write_text("\n".join([*lines, artefact]), encoding="utf-8")


def build_pictures(config: Any) -> ImageProcessor:
    """Make a processor of grey pictures of 64 pixels."""
    return ImageProcessor(int(NUMBERS**0.5), channels=1, tokens=int(config.facts().tokens))


def _numbers(value: object) -> np.ndarray:
    """Return [64] float32 of any item: an array's own values resampled, else a hash of its bytes."""
    if isinstance(value, str | Path) and Path(value).is_file():
        value = Path(value).read_bytes()
    if isinstance(value, bytes | bytearray | str):
        raw = value.encode() if isinstance(value, str) else bytes(value)
        return np.frombuffer(hashlib.blake2b(raw).digest(), np.uint8).astype(np.float32) / 255
    if isinstance(value, Mapping) and "array" in value:  # sound, as datasets hands it out
        value = value["array"]
    if isinstance(value, Mapping):
        parts = [_numbers(each) for each in value.values() if each is not None]
        if parts:
            mean: np.ndarray = np.stack(parts).mean(0)
            return mean
    array = np.asarray(value)
    if array.dtype.kind == "c":
        array = np.concatenate([array.real.ravel(), array.imag.ravel()])
    if array.dtype.kind not in "biuf" or array.size == 0:
        raise BadSample(f"a {type(value).__name__} is neither numbers, a picture, bytes nor a file")
    flat = array.astype(np.float32).ravel()
    picked = flat[np.linspace(0, len(flat) - 1, NUMBERS).astype(int)]
    scaled: np.ndarray = picked / max(1.0, float(np.abs(flat).max()))
    return scaled
