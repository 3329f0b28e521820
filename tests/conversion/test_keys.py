"""The table of names: a bijection, complete, and equal to renaming done by hand."""

from __future__ import annotations

import torch

from janus_plugins.conversion.keys import from_native, place_of, shapes_in, to_native
from tests.conversion.made import official_tensors


def test_every_name_has_one_place_in_each_layout(model, oracle):
    names = list(model.state_dict())
    official = [name for each in names for name in place_of(each, "official").names]
    theirs = [name for each in names for name in place_of(each, "transformers").names]
    assert sorted(official) == sorted(official_tensors(oracle, extras=False))
    assert sorted(theirs) == sorted(oracle.state_dict())


def test_tensors_land_where_renaming_by_hand_puts_them(model, oracle):
    official, theirs = official_tensors(oracle), oracle.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, official[place_of(name, "official").names[0]]), name
        place = place_of(name, "transformers")
        parts = [theirs[each] for each in place.names]
        assert torch.equal(tensor, to_native(parts, place.form)), name
        for part, back in zip(parts, from_native(tensor, place.form), strict=True):
            assert torch.equal(part, back), name
            assert tuple(part.shape) == shapes_in(tuple(tensor.shape), place.form)


def test_the_published_sizes_have_a_name_for_every_tensor():
    for name in ("janus_1.3b", "janus_pro_7b"):
        plan_of = compose_meta(name)
        names = list(plan_of.state_dict())
        assert len(names) > 700
        for layout in ("official", "transformers"):
            spelt = [each for key in names for each in place_of(key, layout).names]
            assert len(spelt) == len(set(spelt))


def compose_meta(name: str):
    from janus_plugins.door import plan
    from janus_plugins.model.compose import compose_plan

    return compose_plan(plan(name), object(), weights=False, device="meta")


def test_a_name_that_is_not_of_the_table():
    assert place_of("understanding.audio.encoder.trunk.norm.weight", "official") is None
    assert place_of("generation.image.encoder.quantize.unused_for", "transformers") is None
