"""The encoder's kernels against its layers: in Triton's interpreter here, on a GPU there."""

from __future__ import annotations

import pytest
import torch

from janus_plugins.encoders.vq import fused
from janus_plugins.encoders.vq.layers import Encoder
from janus_plugins.encoders.vq.model import Vq
from janus_plugins.encoders.vq.spec import VqConfig

from .interpreter import run_interpreted

knobs = pytest.importorskip("triton").knobs

SMALL = VqConfig(
    image_size=16, channels=32, multipliers=(1, 2), num_res_blocks=1, z_channels=16, codebook_size=64
)


def encoder(config: VqConfig = SMALL) -> Encoder:
    torch.manual_seed(0)
    made = Encoder(config).eval()
    for parameter in made.parameters():
        if parameter.ndim == 1:  # norms' weights and all biases: none of them is to be idle
            torch.nn.init.normal_(parameter, std=0.3)
    return made


@torch.no_grad()
def difference(made: Encoder, pixels: torch.Tensor) -> float:
    wanted = made(pixels).float()
    return float((fused.encode(made, pixels).float() - wanted).norm() / wanted.norm())


if knobs.runtime.interpret:

    def test_it_encodes_the_same():
        assert difference(encoder(), torch.rand(2, 3, 16, 16) * 2 - 1) < 1e-5

    def test_pictures_of_many_parts():
        config = SMALL.model_copy(update={"multipliers": (1,), "image_size": 64})
        assert difference(encoder(config), torch.rand(1, 3, 64, 64) * 2 - 1) < 1e-5

else:

    def test_in_the_interpreter():
        run_interpreted(__file__, passing=3)


def test_it_stays_out_of_the_way_on_a_cpu_and_of_other_widths(monkeypatch):
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    assert not fused.fits(encoder(), pixels)
    model = Vq(SMALL).eval()
    with torch.no_grad():
        before = model.encode({"pixels": pixels})
        model.compile_blocks()
        assert torch.equal(model.encode({"pixels": pixels}), before)
    elsewhere = pixels.to("meta")
    monkeypatch.setattr(type(elsewhere), "device", property(lambda _: torch.device("cuda")))
    odd = SMALL.model_copy(update={"channels": 96})
    assert fused.fits(encoder(), elsewhere)
    assert not fused.fits(encoder(odd), elsewhere)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 5e-3), (torch.bfloat16, 0.03)])
def test_on_a_gpu(dtype, limit):
    config = VqConfig(
        image_size=384, channels=128, multipliers=(1, 1, 2, 2, 4), num_res_blocks=2, z_channels=256
    )
    pixels = (torch.rand(3, 3, 384, 384, device="cuda") * 2 - 1).to(dtype)
    assert fused.fits(made := encoder(config).to("cuda", dtype), pixels)
    assert difference(made, pixels) < limit
