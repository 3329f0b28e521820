"""The reference configuration trains: cut to two layers on the CPU, whole where there is a GPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from janus_plugins.door import plan as plan_of
from janus_plugins.model.compose import compose_plan
from janus_plugins.model.flops import names_learn
from janus_plugins.training.metrics import read_metrics
from janus_plugins.training.world import World

from .cut import NO_DOWNLOADS, TWO_LAYERS, steps
from .running import Trained, run_reference, speeds

CUT = (*NO_DOWNLOADS, *TWO_LAYERS, *steps(2, 5, 5))
WHOLE = (*NO_DOWNLOADS, *steps(48, 48, 48, number=4))
MOST_GIB = 24
MOST_SECONDS = 480 if World(0, 1, torch.device("cpu")).multiplies_bf16 else 900
"""It took about 600 of a CPU without instructions for bf16."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return run_reference(tmp_path_factory.mktemp("reference"), CUT)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_steps_of_every_stage_on_the_cpu(trained: Trained) -> None:
    lines = list(read_metrics(trained.out))
    assert [line["stage"] for line in lines] == ["adapters"] * 2 + ["unified"] * 2 + ["finetune"] * 2
    assert all(line["applied"] and line["grad_norm"] > 0 for line in lines)
    assert lines[-1]["bad_samples"] == 0
    shown = ("generation.image", "text.understanding")
    assert all(path in line["loss"] for line in lines for path in shown)
    assert all(any("text.text" in line["loss"] for line in lines if line["stage"] == stage)
               for stage in ("unified", "finetune"))  # fmt: skip
    # Random weights answer like dice: ln 16,384 codes.
    assert lines[0]["loss"]["generation.image"] == pytest.approx(9.70, abs=0.15)
    assert trained.peak < MOST_GIB
    assert trained.seconds < MOST_SECONDS


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_how_fast_its_steps_were_is_worked_out(trained: Trained) -> None:
    found = speeds(plan_of("janus_1.3b", CUT), trained.out)
    assert list(found) == ["adapters", "unified", "finetune"]
    for speed in found.values():
        # Two layers of a language model, frozen encoders: between 6 N and a few times that.
        assert 1e8 < speed.flops_per_token < 1e10
        assert 0 < speed.mfu(1) < 10
        assert 0 < speed.packing <= 1
        assert 0 <= speed.data_wait < 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_what_learns_and_what_stays_bit_identical(trained: Trained) -> None:
    plan = plan_of("janus_1.3b", CUT)
    first = compose_plan(plan).state_dict()
    files = [trained.out / "checkpoints" / f"stage_{index}" / "model.safetensors" for index in range(3)]
    before: Any = first
    for stage, file in zip(plan.run.stages, files, strict=True):
        with safe_open(file, "pt") as after:
            assert set(after.keys()) == set(first)
            for name in first:
                value = before[name] if isinstance(before, dict) else before.get_tensor(name)
                same = torch.equal(value, after.get_tensor(name))
                assert same != names_learn(name, stage), (stage.name, name)
        before = safe_open(file, "pt").__enter__()


@pytest.mark.gpu
@pytest.mark.timeout(1800)
def test_two_steps_of_every_stage_at_full_size(
    tmp_path: Path, record_property: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Report tokens a second and MFU of the later steps of each stage (peak: JANUS_TFLOPS, default an H200's)."""
    peak = float(os.environ.get("JANUS_TFLOPS", "989"))
    trained = run_reference(tmp_path, WHOLE)
    plan = plan_of("janus_1.3b", WHOLE)
    lines = list(read_metrics(trained.out))
    assert [line["stage"] for line in lines] == [stage.name for stage in plan.run.stages for _ in range(4)]
    assert all(line["applied"] for line in lines)
    for name, speed in speeds(plan, trained.out).items():
        told = f"{speed.tokens_per_second:,.0f} tokens/s, MFU {speed.mfu(peak):.1%}"
        record_property(name, told)
        with capsys.disabled():
            print(f"\n{name}: {told}")
        assert 0 < speed.mfu(peak) < 1
