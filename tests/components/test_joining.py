"""Projections of one input side by side in memory: one product, and still the parameters that they were."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from janus_plugins.language_models.joining import lie_together, whole_of
from janus_plugins.testing.elsewhere import AWAY, elsewhere


def layers(bias: bool = True, widths: tuple[int, ...] = (3, 5, 2)) -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList(nn.Linear(4, width, bias=bias) for width in widths)


@pytest.mark.parametrize("bias", [True, False])
def test_one_product_of_all(bias: bool) -> None:
    apart, source = layers(bias), torch.randn(6, 4)
    expected = torch.cat([layer(source) for layer in apart], -1)
    with elsewhere():
        parts: list[nn.Linear] = list(copy.deepcopy(apart).to(AWAY))  # type: ignore[arg-type]
        names = [id(part.weight) for part in parts]
        assert whole_of(parts) is None
        lie_together(parts)
        whole = whole_of(parts)
        assert whole is not None
        made = nn.functional.linear(source.to(AWAY), *whole)
        torch.testing.assert_close(made.cpu(), expected)
        assert [id(part.weight) for part in parts] == names
        place = whole[0].untyped_storage()._cdata
        lie_together(parts)  # nothing moves again
        assert parts[2].weight.untyped_storage()._cdata == place


def test_what_lies_together_is_trained_moved_and_saved_by_itself(tmp_path) -> None:
    apart = layers()
    with elsewhere():
        parts = copy.deepcopy(apart).to(AWAY)
        with torch.inference_mode():
            lie_together(list(parts))  # type: ignore[arg-type]
        optimizer = torch.optim.SGD(parts[1].parameters(), lr=1.0)
        parts[1](torch.ones(1, 4, device=AWAY)).sum().backward()
        optimizer.step()
        whole = whole_of(list(parts))  # type: ignore[arg-type]
        assert whole is not None
        torch.testing.assert_close(whole[0][3:8].cpu(), apart[1].weight.detach() - 1)
        torch.testing.assert_close(whole[0][:3].cpu(), apart[0].weight.detach())
        parts.to("cpu")
        state = {key: value.detach().clone() for key, value in parts.state_dict().items()}
    save_file(state, tmp_path / "parts.safetensors")
    back = load_file(tmp_path / "parts.safetensors")
    assert torch.equal(back["2.weight"], apart[2].weight)
    assert torch.equal(back["1.weight"], apart[1].weight - 1)


def test_memory_of_others_stays_theirs() -> None:
    """An optimiser that keeps weights in a row writes there, not to the parameters."""
    with elsewhere():
        parts = layers().to(AWAY)
        row = torch.cat([part.weight.detach().view(-1) for part in parts])
        firsts = [0, 12, 32]
        for part, first in zip(parts, firsts, strict=True):
            part.weight.data = row[first : first + part.weight.numel()].view_as(part.weight)
        parts[0].weight.data = parts[0].weight.data.clone()
        lie_together(list(parts))  # type: ignore[arg-type]
        row.zero_()
        assert not parts[1].weight.any()


def test_a_row_that_others_keep_is_read_whole() -> None:
    with elsewhere():
        parts = layers(bias=False).to(AWAY)
        row = torch.cat([part.weight.detach() for part in parts]).contiguous()
        for part, value in zip(parts, row.split([3, 5, 2]), strict=True):
            part.weight.data = value
        whole = whole_of(list(parts))  # type: ignore[arg-type]
        assert whole is not None
        row.fill_(2)
        assert (whole[0].cpu() == 2).all()


def test_a_cpu_keeps_its_own_ways() -> None:
    parts = layers()
    lie_together(list(parts))  # type: ignore[arg-type]
    assert whole_of(list(parts)) is None  # type: ignore[arg-type]


def test_layers_with_and_without_a_bias_stay_apart() -> None:
    with elsewhere():
        parts = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3, bias=False)]).to(AWAY)
        lie_together(list(parts))  # type: ignore[arg-type]
        assert whole_of(list(parts)) is None  # type: ignore[arg-type]
