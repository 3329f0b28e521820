"""Tones by name: what is named is the pitch and the timbre; all else about a tone is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from janus_plugins.core.facts import SourceFacts
from janus_plugins.core.samples import Sample, generation_sample
from janus_plugins.sources.tones.spec import NOTES, OCTAVES, TIMBRES, TonesConfig

KINDS = tuple(product(range(len(OCTAVES) * len(NOTES)), TIMBRES))
"""Every tone that has a name of its own: semitones above the lowest, and timbre."""


class Tones:
    """Make tone `index`, the same one each time."""

    def __init__(self, config: TonesConfig) -> None:
        self.config = config

    def __len__(self) -> int:
        """Return the number of tones."""
        return self.config.size

    def __getitem__(self, index: int) -> Sample:
        """Return a caption and the sound that it names, {"array", "sampling_rate"}."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        config = self.config
        semitone, timbre = KINDS[index % len(KINDS)]
        draw = np.random.default_rng([config.seed, config.split == "test", index])
        value = {"array": self._sound(self.pitch(semitone), timbre, draw), "sampling_rate": config.rate}
        return generation_sample(
            self._caption(semitone, timbre), config.modality, value, f"tones-{config.split}[{index}]"
        )

    def texts(self) -> Iterator[str]:
        """Yield every caption."""
        return (self._caption(*kind) for kind in KINDS)

    def pitch(self, semitone: int) -> float:
        """Return hertz of a note, in equal temperament."""
        return self.config.lowest * float(2 ** (semitone / len(NOTES)))

    def _caption(self, semitone: int, timbre: str) -> str:
        octave, note = divmod(semitone, len(NOTES))
        return self.config.prompt.format(timbre=timbre, octave=OCTAVES[octave], note=NOTES[note])

    def _sound(self, pitch: float, timbre: str, draw: np.random.Generator) -> np.ndarray:
        """Return samples [S] (float32): harmonics of random phase and strength, and noise."""
        config = self.config
        times = np.arange(round(config.seconds * config.rate)) / config.rate
        # Below the rate's own limit, with room for the slope of resampling.
        number = min(config.harmonics, int(0.475 * config.rate / pitch))
        numbers = np.arange(1, max(1, number) + 1)
        strengths = draw.uniform(0.7, 1.3, len(numbers)) / numbers ** TIMBRES[timbre]
        phases = draw.uniform(0, 2 * np.pi, len(numbers))
        waves = np.sin(2 * np.pi * pitch * np.outer(numbers, times) + phases[:, None])
        sound = strengths @ waves
        sound *= draw.uniform(0.3, 0.8) / np.abs(sound).max()
        noisy: np.ndarray = (sound + config.noise * draw.normal(size=len(times))).astype(np.float32)
        return noisy


def build(config: TonesConfig, facts: SourceFacts) -> Tones:
    """Build the source."""
    return Tones(config)
