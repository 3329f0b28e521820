"""Codes in blocks under ZeRO-3: two ranks, one of which makes no pictures, train as one that sees both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from janus_plugins.training.metrics import read_metrics
from janus_plugins.training.world import World

from .mixed import run_mixed
from .runs import weights
from .test_ranks import launch, tiny

__all__ = ["tiny"]

OVER = """
base: {base}
model: {{generation: {{image: {{parallel: {{block: 4, sequential: 1}}}}}}}}
stages: {{finetune: {{learn: {{generation.image.starts: 1.0e-3}}}}}}
"""


@pytest.mark.slow
def test_blocks_under_zero_3(tiny: Path, world: World, tmp_path: Path) -> None:
    blocks = tmp_path / "blocks.yaml"
    blocks.write_text(OVER.format(base=tiny))
    launch(2, str(blocks), str(tmp_path / "two"), "3")
    run_mixed(blocks, tmp_path / "one", 3, world)
    for theirs, ours in zip(read_metrics(tmp_path / "two"), read_metrics(tmp_path / "one"), strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5)
        assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=1e-4)
    first, second = weights(tmp_path / "two", 0), weights(tmp_path / "one", 0)
    assert first.keys() == second.keys()
    assert first["generation.image.starts.weight"].shape == (3, 32)
    for name, value in first.items():
        assert torch.allclose(value, second[name], atol=2e-5), name
