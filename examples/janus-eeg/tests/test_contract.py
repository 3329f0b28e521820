import numpy as np
import pytest
from janus_eeg.signals import BANDS, REGIONS, background, blinks, rhythm
from janus_eeg.source import Brainwaves
from janus_eeg.spec import CHANNELS, BrainwavesConfig, janus_components

from janus_plugins.testing import check_component

RATE = 256


def test_contracts():
    for spec in janus_components():
        check_component(spec)


@pytest.mark.parametrize("seconds", [(4, 2), (0, 2)])
def test_lengths_that_no_recording_can_have_are_refused(seconds):
    with pytest.raises(ValueError, match="seconds"):
        BrainwavesConfig(seconds=seconds)


def power(signal, low, high):
    frequencies = np.fft.rfftfreq(signal.shape[1], 1 / RATE)
    return (np.abs(np.fft.rfft(signal)) ** 2)[:, (frequencies >= low) & (frequencies <= high)].sum(axis=1)


def test_a_rhythm_has_its_power_in_its_band_and_its_region():
    for band, (low, high) in BANDS.items():
        for region, names in REGIONS.items():
            made = rhythm(np.random.default_rng(1), RATE, 4 * RATE, band, region, "strong")
            inside = np.array([name in names for name in CHANNELS])
            within = power(made, low - 1, high + 1)
            assert within[inside].min() > 0.8 * power(made, 0, 128)[inside].min()
            assert within[inside].min() > 5 * within[~inside].max()


def test_the_background_falls_with_frequency_and_blinks_are_seen_above_the_eyes():
    draw = np.random.default_rng(2)
    quiet = background(draw, RATE, 4 * RATE)
    # 1/f: bands of two octaves hold as much in all, so at ten times the frequency there is a tenth a Hz.
    assert power(quiet, 2, 8).sum() / 6 > 5 * power(quiet, 20, 80).sum() / 60
    height = np.abs(blinks(draw, RATE, 4 * RATE)).max(axis=1)
    assert set(np.flatnonzero(height > 60)) == {CHANNELS.index("FP1"), CHANNELS.index("FP2")}


def test_no_recording_is_in_both_splits():
    train, test = (Brainwaves(BrainwavesConfig(split=split, size=100), None) for split in ("train", "test"))
    recordings = [
        source[index].turns[0].parts[0].value["array"].tobytes()
        for source in (train, test)
        for index in range(100)
    ]
    assert len(set(recordings)) == 200
