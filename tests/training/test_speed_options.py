"""Options that change how fast a stage trains, and not what it learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from janus_plugins.core.errors import RunFileError
from janus_plugins.door import plan as read_plan
from janus_plugins.sequence.packing import packed_plan
from janus_plugins.training.plan_recipe import plan_recipe
from janus_plugins.training.run import train
from tests.components.toys import tiny_llama
from tests.tiny import write_tiny


class Products(TorchDispatchMode):
    """Count matrix products, and calls of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = {"mm": 0, "_scaled_dot_product_flash_attention_for_cpu": 0}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.counts:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def computed(on: object) -> list[int]:
    llama = tiny_llama().train()
    llama.set_checkpointing(on)
    embeds, plan = torch.randn(2, 64, 32), packed_plan([[64], [64]], 64)
    positions = torch.arange(64).expand(2, -1)
    with Products() as products:
        llama(embeds, positions, plan).sum().backward()
    return list(products.counts.values())


def test_selective_checkpointing_repeats_half_the_products_and_no_attention():
    none, selective, whole = computed(False), computed("selective"), computed(True)
    assert selective[1] == none[1]
    assert whole[1] == 2 * none[1]
    assert 2 * (selective[0] - none[0]) == pytest.approx(whole[0] - none[0], abs=2)
    assert whole[0] > none[0]


def test_a_language_model_that_cannot_be_compiled_is_named(tmp_path: Path, monkeypatch):
    from janus_plugins.language_models.model import CausalLanguageModel

    monkeypatch.delattr(CausalLanguageModel, "compile_blocks")
    recipe = plan_recipe(read_plan(str(write_tiny(tmp_path)), ["engine.compile=true"]))
    with pytest.raises(RunFileError, match="CausalLanguageModel has no compile_blocks"):
        recipe.build(False)


def losses(folder: Path, *overrides: str) -> list[float]:
    plan = read_plan(str(write_tiny(folder)), list(overrides))
    train(plan, folder / "run")
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [one["loss"] for one in map(json.loads, lines) if "loss" in one]
    return [loss for one in logged for _, loss in sorted(one.items())]


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo looks at it
def test_compiled_blocks_train_alike_under_deepspeed(tmp_path: Path):
    for name in ("plain", "fused"):
        (tmp_path / name).mkdir()
    plain = losses(tmp_path / "plain", "engine.log_every=1")
    fused = losses(tmp_path / "fused", "engine.log_every=1", "engine.compile=true")
    assert len(plain) == len(fused) > 3
    assert fused == pytest.approx(plain, abs=1e-3)
