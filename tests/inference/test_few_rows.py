"""Products of a few rows as generated code: the numbers of plain ones, and taken only where they fit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from janus_plugins.inference import few_rows as module
from janus_plugins.inference.few_rows import few_rows
from janus_plugins.inference.linears import In8Bits


class Products(nn.Module):
    """Layers of whole and of broken blocks, with and without a bias, after one another."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(67, 96, bias=False)  # inputs that four streams do not divide
        self.second = nn.Linear(96, 64)
        self.third = nn.Linear(64, 50)  # outputs that no block divides

    def forward(self, rows):
        return self.third(self.second(nn.functional.silu(self.first(rows))))


@pytest.fixture
def written(monkeypatch):
    """Return (rows, outputs, inputs at once) of every innermost loop that was written."""
    made = []
    kind = module._product()
    whole = kind.codegen_define
    monkeypatch.setattr(
        kind,
        "codegen_define",
        lambda self, kernel: made.append(tuple(self.register_blocking)) or whole(self, kernel),
    )
    return made


def compiled(model, rows, most=4):
    import torch._inductor.config as inductor

    from janus_plugins.inference.graph import INDUCTOR

    torch._dynamo.reset()
    with torch.no_grad(), inductor.patch({**INDUCTOR, "fx_graph_cache": False}), few_rows(most):
        return torch.compile(model, dynamic=False)(rows)


def knows_how(dtype):
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    names = str(pick_vec_isa())
    return names.startswith("avx") and not (dtype == torch.bfloat16 and "amx" in names)  # tiles are preferred


@pytest.mark.parametrize(
    ("rows", "dtype"),
    [
        (1, torch.float32),
        (2, torch.bfloat16),
        pytest.param(3, torch.float32, marks=pytest.mark.slow),
        (4, torch.float32),
    ],
)
def test_products_are_those_of_plain_layers(rows, dtype, written):
    torch.manual_seed(rows)
    model = Products().to(dtype).eval()
    given = torch.randn(rows, 67, dtype=dtype)
    close = {"atol": 2e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 2e-2}
    torch.testing.assert_close(compiled(model, given), model(given).detach(), **close)
    assert {block[0] for block in written} == ({rows} if knows_how(dtype) else set())


@pytest.mark.parametrize(
    ("rows", "dtype"),
    [
        (1, torch.float32),
        (2, torch.bfloat16),
        (4, torch.float32),
        *(
            pytest.param(rows, dtype, marks=pytest.mark.slow)
            for rows, dtype in ((2, torch.float32), (1, torch.bfloat16), (4, torch.bfloat16))
        ),
    ],
)
def test_products_in_8_bits_are_those_of_the_library(rows, dtype, written):
    torch.manual_seed(rows)
    model = nn.Sequential(
        In8Bits(torch.randn(96, 192), torch.randn(96, dtype=dtype)),  # inputs not converted in one go
        In8Bits(torch.randn(64, 96), None),  # inputs that no block of 64 divides
    ).eval()
    given = torch.randn(rows, 192, dtype=dtype)
    made, expected = compiled(model, given), model(given)
    assert made.dtype == dtype
    assert (made - expected).norm() / expected.norm() < 0.01
    if knows_how(torch.bfloat16):
        assert {(block[0], block[2]) for block in written} == {(rows, 64)}


def test_more_rows_are_left_to_inductor(written):
    model, given = Products().eval(), torch.randn(5, 67)
    torch.testing.assert_close(compiled(model, given, most=5), model(given).detach(), atol=2e-6, rtol=1e-5)
    assert not written


def test_what_is_compiled_elsewhere_stays_as_it_was():
    known = module._writing().micro_gemm_configs
    before = list(known.items())
    with few_rows(2):
        assert next(iter(known)) is module._product()
    assert list(known.items()) == before


def test_a_torch_without_these_parts_compiles_as_it_does(monkeypatch):
    monkeypatch.delattr(module._writing(), "micro_gemm_configs")
    with few_rows(2):
        pass
