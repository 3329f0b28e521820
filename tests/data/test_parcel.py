"""A step travels as one message: every tensor arrives as it was, whatever its dtype, shape and size."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from janus_plugins.data import parcel
from janus_plugins.data.parcel import pack, unpack


@dataclass(frozen=True)
class Held:
    tensors: dict[str, torch.Tensor]
    twice: tuple[torch.Tensor, torch.Tensor]
    others: tuple[object, ...]


def held():
    torch.manual_seed(0)
    kinds = {
        "float": torch.randn(3, 5),
        "bf16": torch.randn(7).bfloat16(),
        "bool": torch.tensor([True, False, True]),
        "long": torch.arange(9).view(3, 3).T,  # not contiguous
        "byte": torch.randint(0, 255, (2, 3, 5), dtype=torch.uint8),
        "none": torch.zeros(0, 4),
        "one": torch.tensor(3.5, dtype=torch.float64),
    }
    same = torch.randn(4)
    return Held(kinds, (same, same), ("text", 3, None, np.arange(4)))


def check(made, wanted):
    for name, tensor in wanted.tensors.items():
        assert made.tensors[name].dtype == tensor.dtype, name
        assert torch.equal(made.tensors[name], tensor), name
    assert made.twice[0] is made.twice[1]
    assert torch.equal(made.twice[0], wanted.twice[0])
    assert made.others[:3] == wanted.others[:3]
    assert (made.others[3] == wanted.others[3]).all()


@pytest.mark.parametrize("inline", [1 << 18, 0])
def test_all_arrives_as_it_was(monkeypatch, inline):
    monkeypatch.setattr(parcel, "_INLINE", inline)
    wanted = held()
    sent = pack(wanted)
    assert isinstance(sent.content, torch.Tensor) == (inline == 0)
    check(unpack(pickle.loads(pickle.dumps(sent))), wanted)


def test_what_arrives_may_be_written_to():
    made = unpack(pack(held()))
    before = made.tensors["bf16"].clone()
    made.tensors["float"].zero_()
    assert torch.equal(made.tensors["bf16"], before)


def test_nothing_at_all():
    assert unpack(pack(())) == ()
    assert unpack(pack(torch.zeros(0))).shape == (0,)


def test_a_step_is_one_message_of_one_tensor_at_most(monkeypatch):
    monkeypatch.setattr(parcel, "_INLINE", 0)
    sent = pack(held())
    assert sum(isinstance(value, torch.Tensor) for value in vars(sent).values()) == 1
