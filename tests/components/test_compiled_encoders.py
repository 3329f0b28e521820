"""Encoders whose blocks `torch.compile` fuses: the same features and gradients, whatever number of items comes."""

from functools import partialmethod
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from janus_plugins.core.specs import ComponentSpec
from janus_plugins.encoders.internvit.spec import INTERNVIT
from janus_plugins.encoders.siglip.spec import SIGLIP
from janus_plugins.encoders.siglip2.spec import SIGLIP2
from janus_plugins.encoders.towers.eva_spec import EVA_CLIP
from janus_plugins.encoders.towers.open_clip_spec import OPEN_CLIP
from janus_plugins.encoders.towers.timm_spec import TIMM
from janus_plugins.sequence.assemble import collate_items
from tests.components.keeps import made, pictures, processor_of
from tests.components.toys import gradients

TINY_SIGLIP = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2}
OTHERS = [SIGLIP2, INTERNVIT, EVA_CLIP, OPEN_CLIP, TIMM]


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace passes forward and back, but let no compiler make code of them."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()


def learnt(encoder: nn.Module, items: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    encoder.zero_grad()
    features: Tensor = encoder(items)
    features.square().sum().backward()
    return features.detach(), gradients(encoder)


def alike(spec: ComponentSpec, options: dict[str, Any]) -> None:
    plain, fused = made(spec, options).train(), made(spec, options).train()
    fused.compile_blocks()
    arrays = [processor_of(spec, options)(one) for one in pictures()]
    for count in (2, 3):
        items = collate_items(arrays[:count])
        features, learned = learnt(fused, items)
        expected, gradient = learnt(plain, items)
        assert torch.allclose(features, expected, atol=1e-6)
        assert all(torch.allclose(learned[name], each, atol=1e-5) for name, each in gradient.items())
    counters: Any = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert list(fused.state_dict()) == list(plain.state_dict())


@pytest.mark.usefixtures("traced")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo looks at it
def test_one_graph_serves_all_blocks_and_numbers_of_pictures() -> None:
    alike(SIGLIP, TINY_SIGLIP)


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("spec", OTHERS, ids=[spec.name for spec in OTHERS])
def test_other_encoders_blocks_learn_alike(spec: ComponentSpec) -> None:
    alike(spec, spec.config.tiny())
