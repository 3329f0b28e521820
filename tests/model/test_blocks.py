"""A model that predicts its codes in blocks: losses that do not leak, packed as alone; 1 is as without."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

import janus_plugins as jp
from janus_plugins.core.errors import CheckpointError, RunFileError
from janus_plugins.data.loader import StepLoader
from janus_plugins.data.prepare import Preparer
from janus_plugins.data.sources import open_source
from janus_plugins.door import plan as read_plan
from janus_plugins.inference.session import evaluating
from janus_plugins.model.compose import compose_plan
from janus_plugins.model.explain import explain
from janus_plugins.model.start import take_weights
from janus_plugins.sequence.assemble import PRECOMPUTED, assemble
from janus_plugins.training.optim import choose_learning
from tests.model.test_unified import SCALE, gradients
from tests.tiny import write_tiny

LEARN = "stages.finetune.learn.generation.image.starts=1e-3"
CHOICES = {
    "regions": "{block: 4}",
    "rows": "{block: 4, order: rows}",
    "first": "{block: 4, sequential: 1}",
    "once": "{block: 16, order: rows}",
}


def planned(folder, parallel: str, *more: str):
    return read_plan(write_tiny(folder), [f"model.generation.image.parallel={parallel}", LEARN, *more])


@pytest.fixture(scope="module", params=CHOICES)
def made(request, tmp_path_factory):
    """A plan, its model with weights large enough that a leak would show, and how to make samples and batches."""
    plan = planned(tmp_path_factory.mktemp("tiny"), CHOICES[request.param])
    model = compose_plan(plan)
    with torch.no_grad():
        for parameter in model.language_model.parameters():
            parameter.mul_(2)
        model.generation["image"].starts.weight.mul_(20)
    return plan, model


def prepared(plan, model, name: str, stage, *indices: int):
    preparer = Preparer(plan, model.tokenizer, stage)
    source, data = open_source(plan.data[name].part), plan.data[name]
    rng = np.random.default_rng(0)
    return [preparer.prepare(source[index], data, rng) for index in indices]


def batch_of(plan, model, rows):
    preparer = Preparer(plan, model.tokenizer, plan.run.stages[-1])
    return assemble(rows, preparer.dummies, preparer.pad)


@pytest.mark.parametrize(
    "drop", [{"drop_prompt": 0.0}, {"drop_prompt": 1.0}, {"drop_prompt": 1.0, "drop_to": "pad"}]
)
def test_packed_equals_alone(made, drop):
    plan, model = made
    stage = plan.run.stages[-1].model_copy(update={**drop, "close_generated": True})
    draw = prepared(plan, model, "draw", stage, 0, 5, 11)
    others = prepared(plan, model, "sort", stage, 0, 5, 11)
    packed = gradients(
        model,
        [batch_of(plan, model, [[others[0], draw[0], others[1]], [draw[1], others[2], draw[2]]])],
    )
    alone = gradients(model, [batch_of(plan, model, [[one]]) for one in [*others, *draw]])
    assert packed[0] == pytest.approx(alone[0], rel=1e-6)
    assert set(packed[1]) == set(alone[1])
    for name, grad in packed[1].items():
        assert (grad - alone[1][name]).norm() <= 1e-5 * alone[1][name].norm() + 1e-6, name
    assert torch.count_nonzero(packed[1]["generation.image.starts.weight"])


def test_a_code_is_predicted_from_the_passes_before_its_own_alone(made):
    """Change the codes of one pass: what the passes up to it predict stays, what follows moves."""
    plan, model = made
    (draw,) = prepared(plan, model, "draw", plan.run.stages[-1], 3)
    path = model.generation["image"]
    passes = path.blocks.passes(16)
    edges = np.cumsum([0, *passes])
    grid = path.to_grid(torch.arange(16)[None])[0]  # place in the line of each code of the grid

    def losses(codes):
        sample = replace(draw, items=({PRECOMPUTED: codes.numpy()},))
        batch = batch_of(plan, model, [[sample]])
        line, _ = path({PRECOMPUTED: codes[None]})
        assert torch.equal(line[0, grid], codes)
        slots = model._embed(batch)[0]
        hidden = model.language_model(slots.view(1, len(slots), -1), batch.positions, batch.packed)[0]
        return hidden[batch.generation["image"].predict_at]

    codes = torch.arange(16) % 7
    with evaluating(model):
        before = losses(codes)
        for first, stop in pairwise(edges):
            inside = (grid >= int(first)) & (grid < int(stop))
            after = losses(torch.where(inside, codes + 8, codes))
            moved = (before - after).abs().amax(-1) > 1e-6
            assert not moved[: int(stop)].any()
            assert moved[int(stop) :].all()


def test_start_embeddings_tell_the_codes_of_a_block_apart(made):
    """The slots before the first block differ by their place and their start embedding alone."""
    plan, model = made
    starts = model.generation["image"].starts.weight
    batch = batch_of(plan, model, [prepared(plan, model, "draw", plan.run.stages[-1], 3)])
    model.zero_grad()
    model(batch, SCALE).loss.backward()
    assert (starts.grad.abs().amax(-1) > 0).all()
    model.zero_grad()
    model(
        batch_of(plan, model, [prepared(plan, model, "sort", plan.run.stages[-1], 3)]), SCALE
    ).loss.backward()
    assert starts.grad is not None
    assert not starts.grad.any()


def test_it_saves_loads_and_makes_the_same(made, tmp_path):
    _, model = made
    model.save(tmp_path / "model")
    loaded = jp.load(tmp_path / "model")
    assert torch.equal(loaded.generation["image"].starts.weight, model.generation["image"].starts.weight)
    options = {"num_per_prompt": 2, "guidance": 2.0, "return_codes": True}
    codes = model.generate(["a handwritten two", "one"], **options)
    assert codes.shape == (4, 16)
    assert torch.equal(loaded.generate(["a handwritten two", "one"], **options), codes)
    assert torch.equal(model.generate("one", **options), codes[2:])


def test_explain_and_the_loader_count_every_slot(made):
    plan, model = made
    extra = model.generation["image"].blocks.size - 1
    told = explain(plan)
    row = next(part for part in told.parts if part.address == "generation.image.starts")
    assert row.parameters == extra * 32
    assert f"16 codes in {len(model.generation['image'].blocks.passes(16))} passes" in row.shapes
    assert told.stages[-1].trainable["generation.image.starts"] == extra * 32
    assert told.total == sum(parameter.numel() for parameter in model.parameters())
    assert told.stages[-1].tokens_per_sample["generation.image"] == 16 + extra + 2
    batch = next(iter(StepLoader(plan, model.tokenizer, plan.run.stages[-1]))).micro[0]
    assert set(batch.generation["image"].lengths) == {16 + extra}
    items = next(iter(StepLoader(plan, model.tokenizer, plan.run.stages[0])))
    assert items.tokens == 4 * 16


def test_start_embeddings_learn_by_name_and_by_prefix(made):
    plan, model = made
    by_name = choose_learning(model, plan.run.stages[-1]).rates["generation.image.starts.weight"]
    assert by_name == 1e-3
    stage = plan.run.stages[-1].model_copy(update={"learn": {"generation.image": 5e-4}})
    assert choose_learning(model, stage).rates["generation.image.starts.weight"] == 5e-4


def test_a_block_of_one_is_as_without(tmp_path):
    plain = read_plan(write_tiny(tmp_path))
    single = read_plan(
        write_tiny(tmp_path),
        ["model.generation.image.parallel={block: 1, order: regions, sequential: 2}"],
    )
    models = [compose_plan(plan) for plan in (plain, single)]
    states = [model.state_dict() for model in models]
    assert states[0].keys() == states[1].keys()
    batches = [
        next(iter(StepLoader(plan, model.tokenizer, plan.run.stages[-1]))).micro[0]
        for plan, model in zip((plain, single), models, strict=True)
    ]
    assert batches[1].packed.reach is None
    outcomes = [gradients(model, [batch]) for model, batch in zip(models, batches, strict=True)]
    assert outcomes[0][0] == outcomes[1][0]
    assert all(torch.equal(grad, outcomes[1][1][name]) for name, grad in outcomes[0][1].items())
    codes = [model.generate("one", guidance=2.0, return_codes=True) for model in models]
    assert torch.equal(*codes)


def test_all_other_weights_start_as_without(tmp_path):
    plain, blocks = (
        compose_plan(read_plan(write_tiny(tmp_path))),
        compose_plan(planned(tmp_path, "{block: 4}")),
    )
    others = blocks.state_dict()
    assert others.pop("generation.image.starts.weight").shape == (3, 32)
    assert all(torch.equal(value, others[name]) for name, value in plain.state_dict().items())


def test_a_model_of_single_codes_may_go_on_in_blocks(tmp_path):
    plain = compose_plan(read_plan(write_tiny(tmp_path), ["seed=9"]))
    blocks = compose_plan(planned(tmp_path, "{block: 4}"))
    fresh = blocks.generation["image"].starts.weight.clone()
    take_weights(blocks, plain, "plain")
    state = blocks.state_dict()
    assert torch.equal(state.pop("generation.image.starts.weight"), fresh)
    assert all(torch.equal(value, state[name]) for name, value in plain.state_dict().items())
    with pytest.raises(CheckpointError, match=r"has generation\.image\.starts\.weight .* has not"):
        take_weights(plain, blocks, "blocks")
    with pytest.raises(CheckpointError, match=r"starts\.weight is \(3, 32\), but .* \(1, 32\)"):
        take_weights(compose_plan(planned(tmp_path, "{block: 2}")), blocks, "blocks")


def test_an_answer_of_text_and_items_is_refused(made):
    with pytest.raises(RunFileError, match=r"generation\.image\.starts predicts blocks"):
        made[1].generate("one", interleaved=True)
