"""DeepSpeed's configuration, and a gradient that no way of cutting the batch changes."""

from __future__ import annotations

import dataclasses
import io
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from janus_plugins.core.errors import RunFileError
from janus_plugins.core.schema import EngineBlock
from janus_plugins.sequence.batch import Batch
from janus_plugins.training.ds_config import deepspeed_config
from janus_plugins.training.engine import Engine, add_counts, step_counts
from janus_plugins.training.optim import choose_learning, set_trainable
from janus_plugins.training.weights import full_weights
from janus_plugins.training.world import World

from .runs import start, weights
from .toys import ToyRecipe, toy_batch, toy_model, toy_run, toy_stage, zero


def one_step(batches: list[Batch], world: World, engine: EngineBlock, **stage: Any) -> dict[str, Tensor]:
    """Return the weights after one step without dropout."""
    model, block = toy_model().eval(), toy_stage(schedule={"type": "constant"}, **stage)
    learning = choose_learning(model, block)
    set_trainable(model, learning)
    trainer = Engine(model, block, engine, learning, world)
    trainer.module.eval()
    trainer.step(batches, step_counts(batches, block.reconstruct), 0)
    state = full_weights(trainer, world, {})
    trainer.close()
    return state


def reference_gradient(batches: list[Batch], mean: str) -> dict[str, Tensor]:
    """Return the gradient of the mean loss over all positions of all batches, by plain autograd."""
    model = toy_model().eval()
    sums = [model(batch, {"text": 1.0, "generation.image": 0.0}).loss for batch in batches]
    images = [model(batch, {"text": 0.0, "generation.image": 1.0}).loss for batch in batches]
    counts = step_counts(batches, None)
    text, image = torch.stack(sums).sum(), torch.stack(images).sum()
    if mean == "token":
        loss = (text + image) / sum(counts.values())
    else:
        loss = (text / counts["text"] + image / counts["generation.image"]) / 2
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("mean", ["token", "task"])
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_the_gradient_is_that_of_the_mean(stage: int, mean: str, world: World) -> None:
    """Read the gradient g off AdamW's step: with both betas 0 and eps 1 it moves by g / (|g| + 1)."""
    batches = [toy_batch(1), toy_batch(2, made=1), toy_batch(3, text=False), toy_batch(4, seen=0, made=0)]
    block = toy_run(engine=zero(stage, accumulate=4)).engine
    learn = dict.fromkeys(("language_model", "understanding.image", "generation.image.head"), 1.0)
    optimizer = {"betas": (0.0, 0.0), "eps": 1.0}
    after = one_step(batches, world, block, loss_mean=mean, clip=None, optimizer=optimizer, learn=learn)
    before = dict(toy_model().named_parameters())
    for name, gradient in reference_gradient(batches, mean).items():
        moved = (before[name] - after[name]).double()
        found = moved / (1 - moved.abs())
        assert torch.allclose(found, gradient.double(), atol=1e-6, rtol=1e-5), name


def test_accumulation_does_not_change_the_loss_or_the_norm(world: World) -> None:
    """Two micro-batches of one step, against a batch that holds both of them twice over."""
    outcomes = []
    for batches in ([toy_batch(1), toy_batch(2)], [toy_batch(1), toy_batch(2), toy_batch(1), toy_batch(2)]):
        model, block = toy_model(), toy_stage()
        learning = choose_learning(model, block)
        set_trainable(model, learning)
        engine = Engine(model, block, EngineBlock(accumulate=len(batches)), learning, world)
        engine.module.eval()
        outcomes.append(engine.step(batches, step_counts(batches, None), 0))
        engine.close()
    assert outcomes[0].grad_norm == pytest.approx(outcomes[1].grad_norm, rel=1e-5)
    assert outcomes[0].counts["text.text"] * 2 == outcomes[1].counts["text.text"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_adams_first_step_is_the_whole_rate(stage: int, precision: str, world: World) -> None:
    block = toy_run(engine=zero(stage, precision)).engine
    after = one_step([toy_batch(1)], world, block, learn={"language_model.text_head": 1e-2})
    name = "language_model.text_head.weight"
    moved = (after[name] - toy_model().state_dict()[name].to(block_dtype(precision)).float()).abs()
    assert torch.median(moved).item() == pytest.approx(1e-2, rel=1e-2)


def block_dtype(precision: str) -> torch.dtype:
    return torch.bfloat16 if precision == "bf16" else torch.float32


def test_what_is_frozen_stays_bit_identical(world: World, tmp_path: Path) -> None:
    stages = (
        toy_stage("codes", reconstruct="image", learn={"generation.image.encoder": 1e-2}, mix={}),
        toy_stage("adapters", learn={"understanding.image.adapter": 1e-2, "generation.image.head": 1e-2}),
        toy_stage("rest", learn={"language_model": 1e-2, "understanding": 1e-3}),
    )
    start(toy_run(*stages, engine=zero(2, "bf16")), tmp_path, world)
    before: dict[str, Tensor] = dict(toy_model().state_dict())
    for index, stage in enumerate(stages):
        after = weights(tmp_path, index)
        learnt = choose_learning(toy_model(), stage).rates
        changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
        assert changed == set(learnt), stage.name
        before = after


@pytest.mark.parametrize(
    ("precision", "able", "told"), [("bf16", False, 1), ("bf16", True, 0), ("fp32", False, 0)]
)
def test_a_cpu_without_bf16_is_named(
    precision: str, able: bool, told: int, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(World, "multiplies_bf16", able)
    said = io.StringIO()
    recipe = toy_run(toy_stage("one", steps=1), engine=zero(0, precision))
    start(recipe, tmp_path, world, console=Console(file=said, width=500))
    assert said.getvalue().count("this CPU has no instructions for bf16") == told


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_a_stage_leaves_no_memory_to_the_next(
    zero_stage: int, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[Any] = []
    alive: list[int] = []
    begin = Engine.__init__

    def begin_and_look(self: Engine, *given: Any) -> None:
        alive.append(sum(each() is not None for each in held))
        begin(self, *given)
        held.extend(map(weakref.ref, (self.module, self.optimizer, next(self.module.parameters()))))

    monkeypatch.setattr(Engine, "__init__", begin_and_look)
    linear = torch.nn.functional.linear
    stages = [toy_stage(name, steps=1) for name in ("one", "two", "three")]
    start(toy_run(*stages, engine=zero(zero_stage)), tmp_path, world)
    assert alive == [0, 0, 0]
    assert torch.nn.functional.linear is linear


def test_counts_of_a_reconstruction_are_items() -> None:
    batches = [toy_batch(1, made=2), toy_batch(2, made=0), toy_batch(3, made=1)]
    assert step_counts(batches, "image") == {"reconstruct": 3}
    assert step_counts(batches, None) == {"text": 18, "generation.image": 3}
    assert add_counts([{"a": 1}, {"a": 2, "b": 5}]) == {"a": 3, "b": 5}


def test_what_we_fill_in() -> None:
    user = {"zero_optimization": {"stage": 2, "reduce_bucket_size": 1000}, "bf16": {"enabled": True}}
    engine = EngineBlock(precision="bf16", accumulate=3, deepspeed=user)
    config = deepspeed_config(engine, toy_stage(clip=None), world_size=4)
    assert config["train_batch_size"] == 12
    assert config["gradient_accumulation_steps"] == 3
    assert config["gradient_clipping"] == 0.0
    assert config["bf16"]["enabled"] is True
    assert {**config["zero_optimization"], "compute_grad_norm": 1} == {
        "stage": 2,
        "reduce_bucket_size": 1000,
        "compute_grad_norm": 1,
    }
    assert "train_batch_size" not in user


def test_items_for_every_micro_batch_of_a_reconstruction() -> None:
    """Codebooks that move in the forward pass would move to padding."""
    engine, stage = EngineBlock(accumulate=3), toy_stage(batch=5, reconstruct="image", mix={})
    deepspeed_config(engine, stage, world_size=1)
    deepspeed_config(engine, toy_stage(batch=5), world_size=2)
    with pytest.raises(RunFileError, match=r"stages.one.batch: 5 items are fewer than the 6 micro-batches"):
        deepspeed_config(engine, stage, world_size=2)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"gradient_clipping": 5.0}, r"gradient_clipping is 5.0 but stages.one.clip says 1.0"),
        ({"bf16": {"enabled": True}}, r"bf16.enabled is True but engine.precision says False"),
        ({"gradient_accumulation_steps": 2}, r"is 2 but engine.accumulate says 1"),
        ({"train_batch_size": 2}, r"set by stages\[\].batch"),
        ({"optimizer": {"type": "Adam"}}, r"set by stages\[\].optimizer"),
        ({"zero_optimization": {"stage": 4}}, r"stage is 4; use 0, 1, 2 or 3"),
        ({"zero_optimization": {"stage": 1, "compute_grad_norm": False}}, r"non-finite"),
    ],
)
def test_conflicts_are_refused_naming_both_keys(block: dict[str, Any], message: str) -> None:
    with pytest.raises(RunFileError, match=message):
        deepspeed_config(EngineBlock(deepspeed=block), toy_stage(), 1)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (
            {"zero_optimisation": {"stage": 3}},
            r"\.zero_optimisation: .* ignore it.* mean 'zero_optimization'\?",
        ),
        ({"qqq": 1}, r"engine\.deepspeed\.qqq: DeepSpeed [\d.]+ reads no such key and would ignore it\.$"),
        (
            {"zero_optimization": {"stag": 2}},
            r"^engine\.deepspeed\.zero_optimization\.stag: DeepSpeed has no such key\. Did you mean 'stage'\?$",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"divice": "cpu"}}},
            r"zero_optimization\.offload_param\.divice: DeepSpeed has no such key\. Did you mean 'device'\?",
        ),
        (
            {"zero_optimization": {"stage": 2, "reduce_bucket_size": "many"}},
            r"engine\.deepspeed\.zero_optimization\.reduce_bucket_size is 'many': Input should be a valid integer",
        ),
        (
            {"zero_optimization": {"stage": 3, "prefetch_bucket_size": -1, "sub_group_size": -2}},
            r"zero_optimization\.sub_group_size is -2: .*\n.*prefetch_bucket_size is -1: .* greater than or equal",
        ),
        ({"tensorboard": {"enable": True}}, r"engine\.deepspeed\.tensorboard\.enable: .* mean 'enabled'\?"),
        ({"communication_data_type": "fp8"}, r"engine\.deepspeed\.communication_data_type is 'fp8': .*fp16"),
        (
            {"activation_checkpointing": 3},
            r"engine\.deepspeed\.activation_checkpointing is 3: DeepSpeed refuses",
        ),
        ({"amp": {"enabled": True}}, r"engine\.deepspeed\.amp is \{'enabled': True\}: DeepSpeed refuses it"),
        ({"fp16_opt": {}, "zero_optimization": {"stage": 1}}, r"engine\.deepspeed\.fp16_opt: DeepSpeed"),
    ],
)
def test_what_deepspeed_does_not_know_is_refused(block: dict[str, Any], message: str) -> None:
    with pytest.raises(RunFileError, match=message):
        deepspeed_config(EngineBlock(deepspeed=block), toy_stage(), 1)


def test_what_deepspeed_finds_at_odds_is_of_no_key() -> None:
    block = {"bf16": {"bf16_optimizer_states": True}, "zero_optimization": {"stage": 2}}
    with pytest.raises(
        RunFileError, match=r"^engine\.deepspeed: DeepSpeed refuses it: bf16_optimizer_states req"
    ):
        deepspeed_config(EngineBlock(deepspeed=block, precision="bf16"), toy_stage(), 1)


DOCUMENTED: dict[str, Any] = {
    "communication_data_type": "fp32",
    "gradient_allreduce_op": "mean",
    "prescale_gradients": False,
    "gradient_predivide_factor": 1.0,
    "torch_autocast": {"enabled": False, "dtype": "bfloat16"},
    "aio": {"block_size": 1048576, "queue_depth": 8},
    "tensor_parallel": {"autotp_size": 0},
    "hybrid_engine": {"enabled": False},
    "steps_per_print": 10,
    "wall_clock_breakdown": False,
    "dump_state": False,
    "autotuning": {"enabled": False},
    "flops_profiler": {"enabled": False, "profile_step": 1},
    "activation_checkpointing": {"partition_activations": False},
    "data_efficiency": {"enabled": False},
    "data_types": {"grad_accum_dtype": "fp32"},
    "comms_logger": {"enabled": False},
    "tensorboard": {"enabled": False},
    "wandb": {"enabled": False},
    "csv_monitor": {"enabled": False},
    "comet": {"enabled": False},
    "checkpoint": {"tag_validation": "Warn", "load_universal": False},
    "compile": {"deepcompile": False},
    "timers": {"throughput": {"enabled": False}},
    "seq_parallel_communication_data_type": "fp32",
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
    "memory_breakdown": False,
    "disable_allgather": False,
    "dataloader_drop_last": False,
    "use_data_before_expert_parallelism": False,
    "sequence_parallel_size": 1,
    "data_parallel_size": 1,
}


@pytest.mark.parametrize("key", DOCUMENTED)
def test_what_deepspeed_documents_is_taken(key: str) -> None:
    assert key in deepspeed_config(EngineBlock(deepspeed={key: DOCUMENTED[key]}), toy_stage(), 1)


def test_every_setting_of_zero_is_taken_by_name_and_alias() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    for name, field in DeepSpeedZeroConfig.model_fields.items():
        former = (field.json_schema_extra or {}).get("deprecated", False)  # type: ignore[union-attr]
        if name in ("stage", "compute_grad_norm") or former:
            continue
        default = field.get_default(call_default_factory=True)
        for key in {name, field.alias or name}:
            block = {"zero_optimization": {"stage": 2, key: default}}
            deepspeed_config(EngineBlock(deepspeed=block), toy_stage(), 1)


def test_frozen_encoders_are_in_eval_mode(world: World, tmp_path: Path) -> None:
    seen: list[tuple[bool, bool]] = []
    names = ("understanding.image.encoder", "generation.image.encoder")

    class Watching(ToyRecipe):
        def batch(self, *place: Any) -> Batch:
            seen.append(
                (models[0].get_submodule(names[0]).training, models[0].get_submodule(names[1]).training)
            )
            return super().batch(*place)

    recipe = toy_run(toy_stage(learn={"understanding.image": 1e-3}), data=Watching(), encoders=names)
    models: list[Any] = []

    def build(pretrained: bool) -> Any:
        models.append(toy_model())
        return models[-1]

    start(dataclasses.replace(recipe, build=build), tmp_path, world)
    assert set(seen) == {(True, False)}


def test_parts_learn_how_many_batches_make_a_step(world: World) -> None:
    model, block = toy_model(), toy_stage()
    told: list[int] = []
    model.get_submodule("generation.image").set_accumulation = told.append
    learning = choose_learning(model, block)
    set_trainable(model, learning)
    Engine(model, block, EngineBlock(accumulate=3), learning, world).close()
    assert told == [3]
