"""What electrodes pick up, in microvolts: background, rhythms, and what comes from elsewhere."""

import numpy as np

from janus_eeg.spec import CHANNELS

BANDS = {"delta": (1.5, 3.0), "theta": (5.0, 7.0), "alpha": (9.0, 12.0), "beta": (15.0, 28.0)}
REGIONS = {
    "at the front": ("FP1", "FP2", "F3", "F4"),
    "in the middle": ("C3", "C4", "T7", "T8"),
    "at the back": ("P3", "P4", "O1", "O2"),
}
STRENGTHS = {"mild": (5.0, 8.0), "strong": (18.0, 26.0)}  # root mean square of the rhythm
BACKGROUND = 8.0  # the same of everything else that a brain does
BLINKS = {"FP1": 1.0, "FP2": 1.0, "F3": 0.35, "F4": 0.35, "C3": 0.1, "C4": 0.1}
MUSCLES = {"T7": ("T7", "F3", "C3"), "T8": ("T8", "F4", "C4")}


def noise(draw, rate, count, rows, slope, low, high):
    """Return noise [rows, count] of power 1 / f^slope between two frequencies, of mean square one."""
    frequencies = np.fft.rfftfreq(count, 1 / rate)
    shape = np.where(
        (frequencies >= low) & (frequencies <= high), np.maximum(frequencies, low) ** (-slope / 2), 0
    )
    spectrum = shape * (draw.normal(size=(rows, len(shape))) + 1j * draw.normal(size=(rows, len(shape))))
    made = np.fft.irfft(spectrum, count)
    return made / np.sqrt((made**2).mean(axis=1, keepdims=True))


def background(draw, rate, count):
    """Return 1/f noise, some of it common to all electrodes, with the slow drift of the skin."""
    own, common = noise(draw, rate, count, len(CHANNELS), 1, 0.5, 80), noise(draw, rate, count, 1, 1, 0.5, 80)
    drift = np.sin(
        2 * np.pi * draw.uniform(0.05, 0.3) * np.arange(count) / rate + draw.uniform(0, 6, (len(CHANNELS), 1))
    )
    return (
        BACKGROUND * (0.9 * own + 0.44 * common)
        + draw.uniform(5, 20) * drift
        + draw.normal(0, 30, (len(CHANNELS), 1))
    )


def rhythm(draw, rate, count, band, region, strength):
    """Return a wave that comes and goes, strong in its region and faint elsewhere."""
    times, pitch = np.arange(count) / rate, draw.uniform(*BANDS[band])
    swell = 1 + 0.4 * np.sin(2 * np.pi * draw.uniform(0.2, 0.6) * times + draw.uniform(0, 6))
    wander = np.cumsum(draw.normal(0, 0.25 / np.sqrt(rate), count))  # no brain keeps time
    wave = swell * np.sin(2 * np.pi * pitch * times + wander + draw.uniform(0, 6))
    wave = wave / np.sqrt((wave**2).mean()) * draw.uniform(*STRENGTHS[strength])
    reach = np.where([name in REGIONS[region] for name in CHANNELS], 1.0, 0.2)
    return (reach * draw.uniform(0.8, 1.2, len(CHANNELS)))[:, None] * wave


def blinks(draw, rate, count):
    """Return one blink about every second and a half, largest above the eyes."""
    times, made = np.arange(count) / rate, np.zeros(count)
    for _ in range(max(1, round(count / rate / 1.5))):
        middle, width = draw.uniform(0.3, times[-1] - 0.3), draw.uniform(0.06, 0.1)
        made += draw.uniform(90, 180) * np.exp(-0.5 * ((times - middle) / width) ** 2)
    return np.array([BLINKS.get(name, 0.0) for name in CHANNELS])[:, None] * made


def muscles(draw, rate, count):
    """Return bursts of a clenched jaw: fast noise at one temple or both."""
    made = np.zeros((len(CHANNELS), count))
    sides = list(MUSCLES) if draw.random() < 0.5 else [draw.choice(list(MUSCLES))]
    for _ in range(max(1, round(count / rate))):
        length = int(rate * draw.uniform(0.4, 0.8))
        start, burst = (
            draw.integers(count - length),
            np.hanning(length) * noise(draw, rate, length, 1, 0, 25, 100)[0],
        )
        for side in sides:
            for name, share in zip(MUSCLES[side], (1.0, 0.3, 0.3), strict=True):
                made[CHANNELS.index(name), start : start + length] += share * draw.uniform(60, 120) * burst
    return made


def mains(draw, rate, count, hum):
    """Return the mains, in every electrode as much as it is badly fixed."""
    wave = np.sin(2 * np.pi * hum * np.arange(count) / rate + draw.uniform(0, 6))
    return draw.uniform(2, 15, (len(CHANNELS), 1)) * wave
