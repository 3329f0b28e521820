"""The unified model: losses where they belong, packing without leaks, absent paths that are exactly zero."""

from __future__ import annotations

import pytest
import torch

from janus_plugins.data.prepare import Preparer
from janus_plugins.sequence.assemble import assemble_items

SCALE = {"text": 1.0, "generation.image": 1.0}


def gradients(model, batches, scale=SCALE):
    model.zero_grad()
    losses = [model(batch, scale) for batch in batches]
    sum(one.loss for one in losses).backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return sum(float(one.loss.detach()) for one in losses), grads, losses


def assert_same(one, other):
    loss, grads, _ = one
    other_loss, other_grads, _ = other
    assert loss == pytest.approx(other_loss, abs=1e-5, rel=1e-6)
    assert set(grads) == set(other_grads)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, other_grads[name], atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("name", ["read", "draw", "sort"])
def test_packed_equals_alone_on_every_path(model, prepared, batch_of, name):
    others = [one for key, many in prepared.items() for one in many if key != name]
    mine = prepared[name]
    packed = gradients(model, [batch_of([[others[0], mine[0], others[1]], [mine[1], others[2], mine[2]]])])
    alone = gradients(model, [batch_of([[one]]) for one in [*others[:3], *mine]])
    assert_same(packed, alone)


def test_packing_is_noticed_when_it_leaks(model, prepared, batch_of):
    """The comparison above can fail: with one segment a row, samples do see one another."""
    from dataclasses import replace

    from janus_plugins.sequence.packing import packed_plan

    rows = [prepared["sort"]]
    batch = batch_of(rows)
    leaky = replace(batch, packed=packed_plan([[batch.ids.shape[1]]], batch.ids.shape[1]))
    assert abs(float(model(batch, SCALE).loss.detach()) - float(model(leaky, SCALE).loss.detach())) > 1e-3


def test_losses_count_only_their_positions(model, prepared, batch_of):
    batch = batch_of([[prepared["draw"][0], prepared["sort"][0]]])
    counts = batch.targets()
    assert counts["generation.image"] == 16
    answers = [token for token in prepared["sort"][0].plan.text_targets if token >= 0]
    assert counts["text"] == len(answers)
    losses = model(batch, SCALE)
    assert losses.counts["text.text"] == len(answers)
    assert losses.counts["text.understanding"] == 0
    total = losses.sums["text.text"] + losses.sums["generation.image"]
    torch.testing.assert_close(losses.loss.detach(), total)


def test_an_absent_path_gets_exactly_zero_gradient(model, prepared, batch_of):
    _, grads, _ = gradients(model, [batch_of([[prepared["sort"][0]]])])
    absent = [name for name in grads if name.startswith(("understanding.", "generation."))]
    assert any(name.startswith("understanding.image.encoder") for name in absent)
    assert any(name.startswith("generation.image.head") for name in absent)
    for name in absent:
        assert torch.count_nonzero(grads[name]) == 0, name
    assert torch.count_nonzero(grads["language_model.model.layers.0.self_attn.q_proj.weight"])


def test_absent_paths_change_no_value(model, prepared, batch_of):
    """A text sample's loss is the same whether its batch mates bring images or not."""
    text = prepared["sort"][0]
    alone = model(batch_of([[text]]), SCALE).sums["text.text"]
    mixed = model(batch_of([[text], [prepared["read"][0]], [prepared["draw"][0]]]), SCALE).sums["text.text"]
    torch.testing.assert_close(alone, mixed, atol=1e-5, rtol=1e-6)


def test_the_generation_encoder_gets_no_gradient(model, prepared, batch_of):
    _, grads, _ = gradients(model, [batch_of([[prepared["draw"][0]]])])
    assert not [name for name in grads if name.startswith("generation.image.encoder")]


def test_reconstruct_trains_the_encoder_alone(plan, model, prepared):
    preparer = Preparer(plan, model.tokenizer, plan.run.stages[0])
    arrays = [one.items[0] for one in prepared["draw"]]
    batch = assemble_items("image", arrays, 4, preparer.dummies, preparer.pad)
    assert batch.targets("image") == {"reconstruct": 3}
    model.zero_grad()
    losses = model(batch, {"reconstruct": 1 / 3}, "image")
    losses.loss.backward()
    learnt = {name for name, p in model.named_parameters() if p.grad is not None}
    assert learnt
    assert all(name.startswith("generation.image.encoder.") for name in learnt)
    torch.testing.assert_close(losses.loss.detach(), losses.sums["reconstruct.loss"] / 3)
    empty = assemble_items("image", [], 4, preparer.dummies, preparer.pad)
    assert float(model(empty, {"reconstruct": 1.0}, "image").loss.detach()) == 0.0


def test_tables_start_as_the_codebook(model):
    path = model.generation["image"]
    torch.testing.assert_close(path.adapter.table.weight, path.encoder.codebook())


def test_parameter_names_begin_with_the_parts_address(plan, model):
    addresses = plan.model.addresses()
    for name, _ in model.named_parameters():
        assert any(name.startswith(address + ".") for address in addresses), name
