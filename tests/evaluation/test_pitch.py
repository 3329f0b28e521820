"""The pitch of signals: exact on made ones, none where there is none; and of a trained model's sounds."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from janus_plugins.cli import app
from janus_plugins.core.catalogue import load_processor
from janus_plugins.core.errors import RunFileError
from janus_plugins.data.sources import open_source
from janus_plugins.door import plan as read_plan
from janus_plugins.sources.tones.source import KINDS, Tones
from janus_plugins.sources.tones.spec import TonesConfig
from janus_plugins.tasks.pitch.measure import pitch_of
from janus_plugins.tasks.pitch.spec import PitchConfig
from janus_plugins.tasks.pitch.task import Pitch

CONFIG = Path(__file__).parents[2] / "configs" / "tones.yaml"
TIMES = np.arange(3200)


def wave(cycles: float, strengths: tuple[float, ...], seed: int = 0) -> np.ndarray:
    phases = np.random.default_rng(seed).uniform(0, 2 * np.pi, len(strengths))
    return sum(
        strength * np.sin(2 * np.pi * cycles * (place + 1) * TIMES + phase)
        for place, (strength, phase) in enumerate(zip(strengths, phases, strict=True))
    )


@pytest.mark.parametrize("cycles", [0.0021, 0.0163, 0.0551, 0.1037, 0.1249])
@pytest.mark.parametrize(
    "strengths", [(1.0,), (1.0, 0.5, 0.3), (0.2, 1.0, 0.7), (0.0, 1.0, 1.0)], ids=["sine", "falling", "weak", "missing"]
)  # fmt: skip
def test_it_is_that_of_the_common_period(cycles: float, strengths: tuple[float, ...]) -> None:
    for seed in range(3):
        assert pitch_of(wave(cycles, strengths, seed)) == pytest.approx(cycles, rel=2e-3)


def test_noise_a_level_and_an_offset_change_little() -> None:
    sound = wave(0.05, (1.0, 0.5)) + 0.1 * np.random.default_rng(0).normal(size=len(TIMES))
    assert pitch_of(0.01 * sound + 0.5) == pytest.approx(0.05, rel=5e-3)


def test_noise_and_silence_have_none() -> None:
    noise = np.random.default_rng(1).normal(size=(10, 3200))
    assert all(np.isnan(pitch_of(sound)) for sound in noise)
    assert np.isnan(pitch_of(np.zeros(3200)))
    assert np.isnan(pitch_of(np.linspace(-1, 1, 3200)))


class Player:
    """Stand in for a model: it plays each caption right, but for those that it plays a share too high."""

    def __init__(self, too_high: dict[str, float]) -> None:
        self.plan, self.too_high, self.asked = read_plan(CONFIG), too_high, {}
        part = self.plan.model.generation["audio"].encoder
        self.ready = load_processor(part.spec)(part.config)

    def processor(self, modality: str) -> Any:
        return self.ready

    def encode(self, modality: str, values: list[Any]) -> list[Any]:
        return values

    def decode(self, modality: str, codes: list[Any]) -> list[np.ndarray]:
        return [np.zeros(3200) if place % 4 == 0 else one["array"] for place, one in enumerate(codes)]

    def generate(self, prompts: list[str], **options: Any) -> list[Any]:
        self.asked = options
        source = Tones(TonesConfig())
        names = {source[place].turns[0].parts[0]: KINDS[place][0] for place in range(len(KINDS))}
        return [
            SimpleNamespace(prompt=one, artefact=wave(source.pitch(names[one]) / 8000 * factor, (1.0, 0.5)))
            for one in prompts
            for factor in (self.too_high.get(one, 1.0), 1.0)
        ]


def pitch(model: Any, source: str, options: dict[str, Any]) -> dict[str, Any]:
    config = PitchConfig.model_validate(options)
    return Pitch(config, config.facts())(model, open_source(model.plan.data[source].part), {})


def test_the_task_counts_sounds_within_the_share() -> None:
    wrong = {"a bright low c": 1.035, "a mellow high b": 0.5, "a bright high a": 1.025}
    model: Any = Player(wrong)
    answer = pitch(model, "play_test", {"num_per_prompt": 2, "guidance": 2.0})
    assert (model.asked["num_per_prompt"], model.asked["guidance"], model.asked["temperature"]) == (
        2,
        2.0,
        1.0,
    )
    assert (answer["samples"], answer["score"]) == (144, 142 / 144)
    assert {name for name, share in answer["by_prompt"].items() if share == 0.5} == set(wrong) - {
        "a bright high a"
    }
    assert len(answer["by_prompt"]) == 72
    assert answer["ceilings"] == {"real_pitch": 1.0, "reconstructed_pitch": 0.75}


@pytest.mark.parametrize("options", [{"within": 0}, {"tolerance": 0.1}])
def test_options_that_are_none_are_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(RunFileError, match=name):
        read_plan(CONFIG, [f"evaluation.pitch.options={options}"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_tones_trains_and_nine_of_ten_sounds_have_the_pitch_of_their_name(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["train", str(CONFIG), "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert result["ceilings"]["pitch"]["real_pitch"] == 1.0
    assert result["details"]["pitch"]["samples"] == 4 * 72
    assert result["pitch"] >= 0.9
