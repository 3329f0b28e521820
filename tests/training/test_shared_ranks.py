"""One encoder for both paths under ZeRO-3: two ranks that see different modalities train as one with both."""

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
model:
  understanding: {{image: {{encoder: {{share: generation.image.encoder}}}}}}
  generation:
    image:
      encoder:
        use: semantic-vq
        options: {{image_size: 8, channels: 8, multipliers: [1, 2], num_res_blocks: 1, z_channels: 8,
                  codebook_size: 16, code_width: 4, norm_groups: 4, teacher: null, discriminator: null,
                  semantic: {{width: 16, depth: 1, num_heads: 2}}}}
"""


@pytest.mark.slow
def test_a_shared_encoder_under_zero_3(tiny: Path, world: World, tmp_path: Path) -> None:
    shared = tmp_path / "shared.yaml"
    shared.write_text(OVER.format(base=tiny))
    launch(2, str(shared), str(tmp_path / "two"), "3")
    run_mixed(shared, tmp_path / "one", 3, world)
    for theirs, ours in zip(read_metrics(tmp_path / "two"), read_metrics(tmp_path / "one"), strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5)
    first, second = weights(tmp_path / "two", 0), weights(tmp_path / "one", 0)
    assert first.keys() == second.keys()
    assert not [name for name in first if name.startswith("understanding.image.encoder")]
    assert [name for name in first if name.startswith("generation.image.encoder.semantic.")]
    for name, value in first.items():
        assert torch.allclose(value, second[name], atol=2e-5), name
