"""Prepare sound for a codec (mono, its rate, one length), and write what it decodes as .wav."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from janus_plugins.core.errors import BadSample
from janus_plugins.core.sound import read_sound

if TYPE_CHECKING:
    from janus_plugins.encoders.codecs.options import SoundConfig


class SoundProcessor:
    """Turn sound into {"samples": [1, S] float32}, and decoded samples into sound."""

    suffix = ".wav"

    def __init__(self, config: SoundConfig) -> None:
        self.config = config

    def __call__(self, value: object) -> dict[str, np.ndarray]:
        """Return the samples of a file, bytes or an array, or raise `BadSample`; see `read_sound`."""
        config = self.config
        seconds, cut = config.samples / config.rate, config.too_long == "cut"
        sound = read_sound(value, config.rate, seconds, cut)[: config.samples]
        if not len(sound):
            raise BadSample("a recording without samples")
        return {"samples": np.pad(sound, (0, config.samples - len(sound)))[None].astype(np.float32)}

    def num_tokens(self, arrays: Mapping[str, np.ndarray]) -> int:
        """Answer how many slots a sound takes."""
        tokens: int = self.config.facts().tokens
        return tokens

    def dummy(self) -> dict[str, np.ndarray]:
        """Return silence."""
        return {"samples": np.zeros((1, self.config.samples), np.float32)}

    def examples(self) -> list[object]:
        """Return made sounds, for tests."""
        times = np.arange(self.config.samples) / self.config.rate
        pitches = (3, 7, 12)
        length = self.config.samples / self.config.rate
        return [
            (0.5 * np.sin(2 * np.pi * pitch * times / length)).astype(np.float32)[: len(times) - 3 * place]
            for place, pitch in enumerate(pitches)
        ]

    def restore(self, decoded: np.ndarray) -> np.ndarray:
        """Return samples [S] (float32) in [-1, 1] of decoded ones [1, S].

        Raises:
            ValueError: they are not finite.
        """
        sound = np.asarray(decoded, np.float32).reshape(-1)
        if not np.isfinite(sound).all():
            raise ValueError("decoded samples are not finite")
        return np.clip(sound, -1.0, 1.0)

    def write(self, artefact: np.ndarray, path: str, metadata: Mapping[str, str]) -> None:
        """Write samples [S] as a 16-bit .wav, its metadata as JSON in the comment."""
        import soundfile

        with soundfile.SoundFile(
            path, "w", samplerate=self.config.rate, channels=1, format="WAV", subtype="PCM_16"
        ) as file:
            if metadata:
                file.comment = json.dumps(dict(metadata), ensure_ascii=False)
            file.write(artefact)
