"""The digits in blocks, trained for real (slow), and the run files in docs/parallel.md."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from janus_plugins.core.runfile import load_run_text
from janus_plugins.core.wiring import resolve
from janus_plugins.door import plan as read_plan
from janus_plugins.evaluation.runner import evaluate_model
from janus_plugins.model.native import load_native
from janus_plugins.training.run import train

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "parallel.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_run_files_of_the_page(block):
    made = resolve(load_run_text(block, "page.yaml")).model.generation["image"]
    assert made.parallel is not None
    assert made.slots == made.facts.tokens + made.parallel.block - 1


def test_the_digits_in_blocks_take_seven_passes():
    made = read_plan(ROOT / "configs" / "digits_parallel.yaml").model.generation["image"]
    assert (made.facts.tokens, made.slots, made.parallel.block) == (16, 19, 4)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_digits_in_blocks_are_recognised(tmp_path):
    """Up to the end of stage "unified": measured 97.0 %. After all stages see docs/parallel.md."""
    plan = read_plan(ROOT / "configs" / "digits_parallel.yaml")
    run = plan.run.model_copy(update={"stages": plan.run.stages[:3]})
    train(resolve(run), tmp_path, console=Console(file=io.StringIO()))
    scores = evaluate_model(load_native(tmp_path / "model"), ("generation",))
    assert scores["generation"] >= 0.88
