"""The reference configuration trains: cut to two layers on the CPU, whole where there is a GPU."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from janus_plugins.door import plan as plan_of
from janus_plugins.model.compose import compose_plan
from janus_plugins.model.flops import SampleFlops, Shape, names_learn
from janus_plugins.training.metrics import read_metrics
from janus_plugins.training.world import World

from .cut import NO_DOWNLOADS, TWO_LAYERS, steps
from .made import write_all

HAS_BF16 = World(0, 1, torch.device("cpu")).multiplies_bf16
"""Without such instructions a first step in bf16 was not over after 14 minutes; fp32 takes more memory."""

FITTING = steps(2, 5, 5) if HAS_BF16 else (*steps(2, 5, 3), "engine.precision=fp32")
CUT = (*NO_DOWNLOADS, *TWO_LAYERS, *FITTING)
WHOLE = (*NO_DOWNLOADS, *steps(48, 48, 48, number=4))
MOST_GIB = 24
MOST_SECONDS = 480 if HAS_BF16 else 900


@dataclass(frozen=True)
class Trained:
    """Hold a finished run: its folder, its processor seconds (a busy machine adds none), its peak GiB."""

    out: Path
    seconds: float
    peak: float


def run_reference(folder: Path, overrides: Sequence[str]) -> Trained:
    """Train the reference on made data in a process of its own."""
    write_all(plan_of("janus_1.3b").run.data, folder)
    options = [word for override in overrides for word in ("--set", override)]
    command = [
        sys.executable,
        "-m",
        "janus_plugins",
        "train",
        "janus_1.3b",
        *options,
        "--no-evaluate",
        "--out",
        "out",
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    before = _processor_seconds()
    done = subprocess.run(
        command, cwd=folder, env=os.environ | offline, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return Trained(folder / "out", _processor_seconds() - before, peak)


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


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
    peak = float(os.environ.get("JANUS_TFLOPS", "989")) * 1e12
    trained = run_reference(tmp_path, WHOLE)
    plan = plan_of("janus_1.3b", WHOLE)
    flops = SampleFlops(plan, compose_plan(plan, object(), weights=False, device="meta"))  # type: ignore[arg-type]
    for stage in plan.run.stages:
        lines = [line for line in read_metrics(trained.out) if line["stage"] == stage.name]
        assert len(lines) == 4
        assert all(line["applied"] for line in lines)
        speed = max(line["tokens_per_second"] for line in lines[1:])
        text = sum(line["tokens"] for line in lines) / sum(stage.batch for _ in lines) - 578
        shape = Shape(max(1, round(text)), 0, generation="image")
        mfu = speed / flops.tokens(shape) * flops.training(shape, stage) / peak
        record_property(stage.name, f"{speed:.0f} tokens/s, MFU {mfu:.1%}")
        with capsys.disabled():
            print(f"\n{stage.name}: {speed:,.0f} tokens/s, MFU {mfu:.1%}")
        assert mfu > 0
