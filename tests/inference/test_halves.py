"""Half precision on a CPU without instructions for it: computed in fp32, rounded once, and only where it pays."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from janus_plugins.inference import halves
from janus_plugins.inference.halves import FEW_ROWS, widened

HALVES = [torch.bfloat16, torch.float16]


class Parts(nn.Module):
    """Convolutions, products with and without a bias, a product of two batches, and a norm between them."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 24, 3, padding=1)
        self.back = nn.ConvTranspose2d(24, 24, 2, stride=2)
        self.norm = nn.LayerNorm(24)
        self.wide = nn.Linear(24, halves._PART + 40)
        self.narrow = nn.Linear(halves._PART + 40, 16, bias=False)

    def forward(self, pixels):
        rows = self.norm(self.back(self.conv(pixels)).flatten(2).transpose(1, 2))
        rows = self.narrow(self.wide(rows))
        return torch.matmul(rows, rows.transpose(1, 2))


@pytest.fixture
def slow(monkeypatch):
    """Let both formats be slow on the CPU, whatever this one can do."""
    monkeypatch.setattr(halves, "is_slow", lambda dtype, device: dtype in HALVES and device.type == "cpu")


@pytest.fixture
def computed(monkeypatch):
    """Return what was computed in fp32, by name."""
    names = []
    product, wide = halves._InFp32._product, halves._InFp32._wide

    def noted(self, func, *args):
        if len(args[-2]) > FEW_ROWS:
            names.append(func.overloadpacket.__name__)
        return product(self, func, *args)

    monkeypatch.setattr(halves._InFp32, "_product", noted)
    monkeypatch.setattr(
        halves._InFp32,
        "_wide",
        lambda self, values: (names.append("other") if values else None, wide(self, values))[1],
    )
    return names


@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("dtype", HALVES)
def test_results_are_those_of_fp32_rounded(dtype, grad, slow, computed):
    torch.manual_seed(0)
    model = Parts().to(dtype)
    pixels = torch.randn(2, 3, 5, 5).to(dtype)
    with grad():
        exact = copy.deepcopy(model).float()(pixels.float())
        with widened(model):
            made = model(pixels)
    assert made.dtype == dtype
    assert (made.float() - exact).norm() / exact.norm() < (2e-2 if dtype == torch.bfloat16 else 2e-3)
    assert {"addmm", "mm", "other"} <= set(computed)
    assert computed.count("other") == 3  # two convolutions and a product of batches


def test_gradients_are_those_of_fp32_rounded(slow, computed):
    torch.manual_seed(0)
    model, pixels = Parts().bfloat16(), torch.randn(2, 3, 5, 5).bfloat16()
    exact = copy.deepcopy(model).float()
    exact(pixels.float()).square().mean().backward()
    with widened(model):
        model(pixels).square().mean().backward()
    for (name, made), expected in zip(model.named_parameters(), exact.parameters(), strict=True):
        assert made.grad.dtype == torch.bfloat16, name
        assert (made.grad.float() - expected.grad).norm() / expected.grad.norm() < 5e-2, name
    assert computed.count("other") == 3 + 2 + 2  # and backwards: two convolutions, a product for each factor


@pytest.mark.parametrize("dtype", HALVES)
def test_attention_s_gradients_are_those_of_fp32_rounded(dtype, slow, computed):
    torch.manual_seed(0)
    rows = torch.randn(3, 2, 4, 9, 8).to(dtype)
    exact, made = rows.float().requires_grad_(), rows.clone().requires_grad_()
    mask = torch.randn(9, 9).to(dtype)
    attend = nn.functional.scaled_dot_product_attention
    attend(*exact, mask.float()).square().mean().backward()
    with widened(nn.Linear(1, 1, dtype=dtype)):
        attend(*made, mask).square().mean().backward()
    assert made.grad.dtype == dtype
    assert (made.grad.float() - exact.grad).norm() / exact.grad.norm() < (
        1e-2 if dtype == torch.bfloat16 else 2e-3
    )
    assert "other" in computed


def test_one_product_is_rounded_once(slow):
    torch.manual_seed(0)
    layer, rows = nn.Linear(300, 77).bfloat16(), torch.randn(FEW_ROWS + 1, 300).bfloat16()
    with torch.no_grad():
        exact = nn.functional.linear(rows.float(), layer.weight.float(), layer.bias.float())
        with widened(layer):
            made = layer(rows)
    assert torch.equal(made, exact.bfloat16())


def test_few_rows_fp32_and_what_is_not_slow_stay_as_they_are(slow, computed, monkeypatch):
    layer = nn.Linear(8, 8).bfloat16()
    with torch.no_grad(), widened(layer):
        layer(torch.randn(FEW_ROWS, 8).bfloat16())
    with torch.no_grad(), widened(layer, rows=FEW_ROWS):
        layer(torch.randn(100, 8).bfloat16())
    with torch.no_grad(), widened(layer.float()):
        layer(torch.randn(100, 8))
    monkeypatch.setattr(halves, "is_slow", lambda dtype, device: False)
    with torch.no_grad(), widened(layer.bfloat16()):
        layer(torch.randn(100, 8).bfloat16())
    assert not computed


def test_whether_a_format_is_slow_is_asked_of_the_machine(monkeypatch):
    cpu = torch.device("cpu")
    assert not halves.is_slow(torch.float32, cpu)
    assert not halves.is_slow(torch.bfloat16, torch.device("meta"))
    for answer in (True, False):
        known = type("Known", (), {})()
        known._is_mkldnn_bf16_supported = known._is_mkldnn_fp16_supported = lambda answer=answer: answer
        monkeypatch.setattr(torch.ops, "mkldnn", known)
        assert halves.is_slow(torch.bfloat16, cpu) is not answer
        assert halves.is_slow(torch.float16, cpu) is not answer
    monkeypatch.setattr(torch.ops, "mkldnn", object())  # a build without oneDNN
    assert halves.is_slow(torch.bfloat16, cpu)


@pytest.mark.parametrize("shape", [(), (1,), (halves._PART + 40,), (40, 1), (40, halves._PART + 40)])
def test_what_is_added_may_be_narrower(shape, slow, computed):
    torch.manual_seed(0)
    added, rows, weight = (
        torch.randn(size).bfloat16() for size in (shape, (40, 30), (30, halves._PART + 40))
    )
    with widened(nn.Linear(1, 1).bfloat16()):
        made = torch.addmm(added, rows, weight)
    assert torch.equal(made, torch.addmm(added.float(), rows.float(), weight.float()).bfloat16())
    assert computed == ["addmm"]
