"""The stand-in for an accelerator: computes as the CPU does, refuses what CUDA refuses, counts waits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from janus_plugins.testing.elsewhere import AWAY, AwayTensor, elsewhere


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.table.weight
        self.register_buffer("shift", torch.arange(4.0))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.table(ids) + self.shift
        query = hidden.view(1, 1, -1, 4)
        seen = nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True)
        return self.out(seen[0, 0]).logsumexp(-1).sum()


def test_values_and_gradients_are_the_cpus() -> None:
    torch.manual_seed(0)
    model, ids = Tied(), torch.tensor([1, 3, 3, 6])
    expected = model(ids)
    expected.backward()
    gradient = model.table.weight.grad
    assert gradient is not None
    model.zero_grad()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with elsewhere():
        model.to(AWAY)
        assert model.out.weight is model.table.weight
        assert isinstance(model.table.weight, nn.Parameter)
        assert {each.device for each in (model.shift, model.table.weight)} == {AWAY}
        loss = model(ids.to(AWAY))
        loss.backward()
        assert isinstance(loss, AwayTensor)
        torch.testing.assert_close(loss.cpu(), expected)
        torch.testing.assert_close(model.table.weight.grad.cpu(), gradient)
        before = model.table.weight.detach().cpu()
        optimizer.step()
        assert (model.table.weight.cpu() - before).abs().max() > 0.01
        model.to("cpu")
        assert model.out.weight is model.table.weight
        assert type(model.table.weight) is nn.Parameter
    assert torch.isfinite(model(ids))


def test_views_are_written_through() -> None:
    with elsewhere():
        whole = torch.zeros(2, 3, device=AWAY)
        whole[:, 1:].add_(1)
        whole.view(-1)[0] = 5
        whole[[0, 1], [2, 2]] = 7
        assert whole.tolist() == [[5, 1, 7], [0, 1, 7]]


MIXED = {
    "a product": lambda away, here: away @ here.T,
    "a table on the CPU": lambda away, here: here[away[0].long()],
    "values put in": lambda away, here: away.index_put_((torch.tensor([0]),), here[:1]),
    "a sum of rows": lambda away, here: torch.cat([away, here]),
    "numbers of the CPU": lambda away, here: torch.rand(3, device=AWAY, generator=torch.Generator()),
    "numpy": lambda away, here: away.numpy(),
}


@pytest.mark.parametrize("name", MIXED)
def test_what_cuda_refuses(name: str) -> None:
    with elsewhere(), pytest.raises((RuntimeError, TypeError), match=r"same device|generator|numpy"):
        MIXED[name](torch.zeros(2, 3, device=AWAY), torch.zeros(2, 3))


def test_what_cuda_allows() -> None:
    with elsewhere():
        away = torch.ones(2, 3, device=AWAY)
        made = (away * torch.tensor(2.0) + 1)[torch.tensor([1, 0])]
        assert made.cpu().tolist() == [[3, 3, 3]] * 2
        away.copy_(torch.zeros(2, 3))
        assert not away.any()


def test_waits_are_counted() -> None:
    with elsewhere() as mode:
        away = torch.arange(6.0).to(AWAY, non_blocking=True)
        away = (away * 2).index_select(0, torch.arange(3, device=AWAY)).softmax(0)
        assert not mode.waits
        values = {
            "_to_copy": lambda: torch.zeros(3).to(AWAY),
            "_local_scalar_dense": lambda: float(away[0]),
            "nonzero": lambda: (away > 0).nonzero(),
            "index": lambda: away[away > 0],
        }
        for wait in values.values():
            wait()
        assert mode.waits == dict.fromkeys(values, 1)
