"""What every encoder of a modality must keep, as functions of (spec, options, raw items)."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from janus_plugins.core.errors import BadSample
from janus_plugins.core.specs import ComponentSpec
from janus_plugins.sequence.assemble import collate_items


def load(target: str) -> Any:
    module, name = target.split(":")
    return getattr(importlib.import_module(module), name)


def made(spec: ComponentSpec, options: dict[str, Any], seed: int = 0, *neighbours: Any) -> Any:
    config = spec.config(**options)
    torch.manual_seed(seed)
    return load(spec.factory)(config, config.facts(*neighbours)).eval()


def processor_of(spec: ComponentSpec, options: dict[str, Any]) -> Any:
    assert spec.processor is not None
    return load(spec.processor)(spec.config(**options))


def pictures() -> list[np.ndarray]:
    draw = np.random.default_rng(7)
    return [draw.integers(0, 256, (*side, 3), dtype=np.uint8) for side in ((40, 40), (64, 30), (25, 50))]


class Examples:
    """A component's own made items."""

    def __init__(self, spec: ComponentSpec, options: dict[str, Any]) -> None:
        self.spec, self.options = spec, options

    def __call__(self) -> list[Any]:
        examples: list[Any] = processor_of(self.spec, self.options).examples()
        return examples


def facts_equal_behaviour(spec: ComponentSpec, options: dict[str, Any], raw: Sequence[object]) -> None:
    facts, processor, module = (
        spec.config(**options).facts(),
        processor_of(spec, options),
        made(spec, options),
    )
    arrays = [processor(value) for value in raw]
    counts = [processor.num_tokens(each) for each in arrays]
    assert max(counts) <= facts.max_tokens
    if facts.tokens is not None:
        assert set(counts) == {facts.tokens} == {facts.max_tokens}
    for size in (0, 1, len(raw)):
        items = collate_items(arrays[: max(size, 1)])
        with torch.no_grad():
            features = module({name: each[:size] for name, each in items.items()})
        assert features.shape == (size, max(counts[: max(size, 1)]), facts.width)
        assert features.isfinite().all()


def alone_as_in_a_batch(spec: ComponentSpec, options: dict[str, Any], raw: Sequence[object]) -> None:
    processor, module = processor_of(spec, options), made(spec, options)
    arrays = [processor(value) for value in raw]
    given = collate_items(arrays)
    before = {name: each.clone() for name, each in given.items()}
    with torch.no_grad():
        together = module(given)
        assert all(torch.equal(given[name], each) for name, each in before.items())
        assert together.std() > 1e-3
        for row, each in enumerate(arrays):
            single = module(collate_items([each]))[0]
            count = processor.num_tokens(each)
            assert torch.allclose(single[:count], together[row, :count], atol=2e-5), row


def every_parameter_learns(spec: ComponentSpec, options: dict[str, Any], raw: Sequence[object]) -> None:
    processor, module = processor_of(spec, options), made(spec, options)
    features = module(collate_items([processor(value) for value in raw]))
    (
        features * torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
    ).square().mean().backward()
    idle = [name for name, each in module.named_parameters() if each.requires_grad and each.grad is None]
    assert not idle
    assert all(each.grad.isfinite().all() for each in module.parameters() if each.grad is not None)


def bfloat16_is_kept(spec: ComponentSpec, options: dict[str, Any], raw: Sequence[object]) -> None:
    processor, module = processor_of(spec, options), made(spec, options).to(torch.bfloat16)
    with torch.no_grad():
        features = module(collate_items([processor(value) for value in raw]))
    assert features.dtype == torch.bfloat16
    assert features.isfinite().all()


def a_saved_state_answers_the_same(spec, options, raw, tmp_path) -> None:
    processor = processor_of(spec, options)
    one, two = made(spec, options, 1), made(spec, options, 2)
    save_file(
        {name: each.clone().contiguous() for name, each in one.state_dict().items()},
        tmp_path / "a.safetensors",
    )
    items = collate_items([processor(value) for value in raw])
    with torch.no_grad():
        assert not torch.allclose(one(items), two(items), atol=1e-4)
        two.load_state_dict(load_file(tmp_path / "a.safetensors"))
        assert torch.equal(one(items), two(items))


def the_meta_device_gives_the_same_shapes(spec: ComponentSpec, options: dict[str, Any]) -> None:
    real = made(spec, options)
    with torch.device("meta"):
        empty = made(spec, options)
    shapes = {name: each.shape for name, each in real.state_dict().items()}
    assert {name: each.shape for name, each in empty.state_dict().items()} == shapes
    assert all(each.is_meta for each in empty.parameters())


def the_processor_is_data(spec: ComponentSpec, options: dict[str, Any], raw: Sequence[object]) -> None:
    processor = processor_of(spec, options)
    copy = pickle.loads(pickle.dumps(processor))
    dummy = processor.dummy()
    for value in raw:
        one, other = processor(value), copy(value)
        assert list(one) == list(other) == list(dummy)
        for name, array in one.items():
            assert np.array_equal(array, other[name])
            assert (array.dtype, array.shape[1:]) == (dummy[name].dtype, dummy[name].shape[1:])
    collate_items([dummy, processor(raw[0])])
    with torch.no_grad():
        features = made(spec, options)(collate_items([dummy]))
    assert features.shape[1] >= processor.num_tokens(dummy)
    assert features.isfinite().all()
    for wrong in (object(), None, 3):
        with pytest.raises(BadSample):
            processor(wrong)


CHECKS = (
    facts_equal_behaviour,
    alone_as_in_a_batch,
    every_parameter_learns,
    bfloat16_is_kept,
    the_processor_is_data,
)
