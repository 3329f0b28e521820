"""Schedules, parameter groups and the scale of the loss, as numbers."""

from __future__ import annotations

import pytest
import torch

from janus_plugins.core.errors import RunFileError
from janus_plugins.core.schema import Schedule
from janus_plugins.training.optim import (
    build_optimizer,
    choose_learning,
    loss_scales,
    parameter_groups,
    rate_factor,
    set_trainable,
)
from janus_plugins.training.stages import undone_stages

from .toys import toy_model, toy_stage


@pytest.mark.parametrize(
    ("schedule", "steps", "expected"),
    [
        ({"type": "constant"}, 3, [1, 1, 1]),
        ({"type": "constant", "warmup": 4}, 6, [0.25, 0.5, 0.75, 1, 1, 1]),
        ({"type": "linear"}, 5, [1, 0.75, 0.5, 0.25, 0]),
        ({"type": "linear", "warmup": 2, "floor": 0.2}, 5, [0.5, 1, 1, 0.6, 0.2]),
        ({"type": "cosine"}, 5, [1, 0.8535533905932737, 0.5, 0.14644660940672627, 0]),
        ({"type": "cosine", "warmup": 1, "floor": 0.5}, 4, [1, 1, 0.75, 0.5]),
        ({"type": "cosine", "warmup": 9}, 4, [1 / 9, 2 / 9, 3 / 9, 4 / 9]),
    ],
)
def test_schedules(schedule: dict[str, object], steps: int, expected: list[float]) -> None:
    factors = [rate_factor(Schedule(**schedule), step, steps) for step in range(steps)]
    assert factors == pytest.approx(expected, abs=1e-12)


def test_the_longest_prefix_wins_and_the_rest_is_frozen() -> None:
    model = toy_model()
    learn = {"language_model": 1e-3, "language_model.block": 2e-3, "language_model.block.0.bias": 3e-3}
    learning = choose_learning(model, toy_stage(learn=learn))
    set_trainable(model, learning)
    assert learning.rates["language_model.norm.weight"] == 1e-3
    assert learning.rates["language_model.block.3.weight"] == 2e-3
    assert learning.rates["language_model.block.0.bias"] == 3e-3
    assert learning.by_pattern["language_model.block.0.bias"] == 16
    learnt = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learnt == set(learning.rates)
    assert not any(name.startswith(("understanding", "generation")) for name in learnt)
    assert learning.frozen == sum(p.numel() for p in model.parameters() if not p.requires_grad)


def test_a_prefix_is_whole_words() -> None:
    with pytest.raises(RunFileError, match=r"'language_mode' names no parameter.*'language_model'"):
        choose_learning(toy_model(), toy_stage(learn={"language_mode": 1e-3}))


@pytest.mark.parametrize("ema", [None, 0.9])
def test_one_kernel_takes_the_same_step(ema: float | None) -> None:
    stage = toy_stage(learn={"language_model.block": 1e-3}, ema=ema)
    steps = []
    for device in ("lazy", "cpu", "cuda"):
        model = toy_model()
        optimizer = build_optimizer(model, stage, choose_learning(model, stage), torch.device(device))
        assert bool(optimizer.defaults["fused"]) == (device != "lazy")
        for group in optimizer.param_groups:
            group["lr"] = 1e-2
        for number in range(3):
            for parameter in model.language_model.block.parameters():
                parameter.grad = torch.full_like(parameter, 0.1 * (number - 1))
            optimizer.step()
        steps.append([*model.parameters()])
    plain, *fused = steps
    for made in fused:
        torch.testing.assert_close(made, plain, rtol=1e-5, atol=1e-7)


def test_decay_is_for_matrices() -> None:
    model = toy_model()
    learning = choose_learning(model, toy_stage(learn={"language_model.block": 1e-3}))
    groups = parameter_groups(model, learning, 0.1)
    shapes = {(group["peak"], group["weight_decay"]): [p.ndim for p in group["params"]] for group in groups}
    assert shapes == {(1e-3, 0.1): [2, 2], (1e-3, 0.0): [1, 1]}


def test_loss_scales() -> None:
    counts = {"text": 6, "generation.image": 2, "generation.audio": 0}
    assert loss_scales(counts, "token") == {"text": 1 / 8, "generation.image": 1 / 8, "generation.audio": 0}
    assert loss_scales(counts, "task") == {"text": 1 / 12, "generation.image": 1 / 4, "generation.audio": 0}
    assert loss_scales({"text": 0}, "token") == {"text": 0}


def test_an_encoder_that_is_trained_after_what_uses_its_codes_is_told() -> None:
    stages = [
        toy_stage("all", learn={"generation.image": 1e-3, "language_model": 1e-3}),
        toy_stage("text", learn={"language_model": 1e-3}),
        toy_stage("head", learn={"generation.image.head.output": 1e-3}),
        toy_stage("codes", learn={"generation.image.encoder": 1e-3}, reconstruct="image", mix={}),
        toy_stage("sounds", learn={"generation.sound.encoder": 1e-3}, reconstruct="sound", mix={}),
    ]
    assert undone_stages(stages, 3) == ["all", "head"]
    assert undone_stages(stages, 4) == []
    assert undone_stages(stages, 2) == []
