"""The tones source: the sound has the pitch of its name, and all else about it differs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from janus_plugins.sources.tones.source import KINDS, Tones
from janus_plugins.sources.tones.spec import TonesConfig
from janus_plugins.tasks.pitch.measure import pitch_of

HERTZ = {"low c": 130.81, "middle a": 440.0, "high f sharp": 739.99, "high b": 987.77}
"""From tables of equal temperament: c3 to b5."""


def tone(source: Tones, index: int) -> tuple[str, Any]:
    user, assistant = source[index].turns
    return str(user.parts[0]), assistant.parts[0].value["array"]  # type: ignore[union-attr]


def test_a_name_is_a_pitch() -> None:
    source, seen = Tones(TonesConfig()), {}
    for index in range(2 * len(KINDS)):
        name, sound = tone(source, index)
        hertz = 8000 * pitch_of(sound)
        assert hertz == pytest.approx(source.pitch(KINDS[index % len(KINDS)][0]), rel=2e-3), name
        seen[name.split(maxsplit=2)[2]] = hertz
    for name, hertz in HERTZ.items():
        assert seen[name] == pytest.approx(hertz, rel=2e-3)


def test_bright_tones_have_stronger_harmonics() -> None:
    source = Tones(TonesConfig())
    shares: dict[str, list[float]] = {"mellow": [], "bright": []}
    for index in range(2 * 12):  # the low octave, where all harmonics fit
        name, sound = tone(source, index)
        power = np.abs(np.fft.rfft(sound * np.hanning(len(sound)))) ** 2
        first = round(source.pitch(KINDS[index][0]) * len(sound) / 8000)
        shares[name.split()[1]].append(float(power[first - 3 : first + 4].sum() / power.sum()))
    assert min(shares["mellow"]) > 0.9 > max(shares["bright"])


def test_the_same_each_time_other_ones_elsewhere() -> None:
    train, test = Tones(TonesConfig(size=144)), Tones(TonesConfig(size=144, split="test"))
    assert len(train) == 144
    assert np.array_equal(tone(train, 7)[1], tone(train, 7)[1])
    sounds = [tone(train, 7), tone(train, 7 + 72), tone(test, 7), tone(Tones(TonesConfig(seed=1)), 7)]
    assert len({name for name, _ in sounds}) == 1
    assert len({sound.tobytes() for _, sound in sounds}) == 4
    assert sorted(train.texts()) == sorted({tone(train, index)[0] for index in range(144)})
    with pytest.raises(IndexError):
        train[144]


def test_notes_that_a_rate_cannot_carry_are_refused() -> None:
    with pytest.raises(
        ValueError, match="the highest note has 988 hertz, but rate 1600 carries less than 800"
    ):
        TonesConfig(rate=1600)
