"""The pitch of sounds.

It is measured on the signal itself, in cycles a sample, so that no rate needs to be known: the shortest
delay at which a sound is about as much like itself as at any. Source: McLeod and Wyvill, "A smarter way to
find pitch" (2005), its normalised square difference, here at a quarter of a sample.
"""

from __future__ import annotations

import numpy as np

FINER = 4
"""Delays tried between one sample and the next."""

AS_GOOD = 0.85
"""Share of the highest likeness that a shorter period needs to be taken: its multiples are as much alike."""


def pitch_of(sound: np.ndarray, clarity: float = 0.5) -> float:
    """Return the pitch of samples [S] in cycles a sample, or NaN where there is none.

    Args:
        sound: samples; periods of up to a third of them are found.
        clarity: least likeness of a sound to itself one period later, of at most 1.
    """
    alike = _likeness(np.asarray(sound, np.float64))
    inner = alike[1:-1]
    peaks = 1 + np.flatnonzero((inner >= alike[:-2]) & (inner > alike[2:]))
    # Within a period a sound becomes unlike itself; before that its peaks are ripples.
    peaks = peaks[np.minimum.accumulate(alike)[peaks] < 0]
    if not len(peaks) or alike[peaks].max() < clarity:
        return float("nan")
    first = peaks[alike[peaks] >= AS_GOOD * alike[peaks].max()][0]
    before, here, after = alike[first - 1 : first + 2]
    bend = before - 2 * here + after
    top = first + (0.5 * (before - after) / bend if bend else 0.0)
    return float(FINER / top)


def _likeness(sound: np.ndarray) -> np.ndarray:
    """Return how alike a sound and itself later are, at most 1, at delays of 1 / FINER samples [D]."""
    length, longest = len(sound), len(sound) // 3
    sound = sound - sound.mean()
    power = np.abs(np.fft.rfft(sound, 2 * length)) ** 2
    # Zeros above the spectrum are delays in between: band-limited interpolation.
    shared = np.fft.irfft(power, 2 * length * FINER)[: longest * FINER] * FINER
    heaped = np.concatenate(([0.0], np.cumsum(sound**2)))
    delays = np.arange(longest * FINER) / FINER
    places = np.arange(length + 1)
    energy = np.interp(length - delays, places, heaped) + heaped[-1] - np.interp(delays, places, heaped)
    alike: np.ndarray = 2 * shared / np.maximum(energy, 1e-12)
    return alike
