"""The rule that a component computes where it is, tried on a device that is not the CPU (`elsewhere`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from janus_plugins.core.kinds import Kind
from janus_plugins.testing.case import Case
from janus_plugins.testing.elsewhere import AWAY, elsewhere
from janus_plugins.testing.report import Broken, Skipped, described, expect
from janus_plugins.testing.rules.built import close, difference, run
from janus_plugins.testing.subjects import ALL, subject_of
from janus_plugins.testing.tiny_model import WORDS, TinyModel

CPU = torch.device("cpu")


def device(case: Case) -> None:
    """Check that on another device than the CPU it gives the same answers, losses and gradients."""
    tiny = TinyModel(case)
    try:
        expected = _made(tiny, CPU)
    except Skipped:
        raise
    except Exception as error:  # which other rules name
        raise Skipped("it does not run on the CPU either") from error
    wanted = "answers, losses and gradients on a device that is not the CPU"
    try:
        with elsewhere():
            made = {name: value.cpu() for name, value in _made(tiny, AWAY).items()}
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise Broken(f"{wanted} (make tensors with device=x.device)", described(error)) from error
    for name, value in expected.items():
        expect(close(made[name], value), f"{wanted} as on it", f"{name}: {difference(made[name], value)}")


def _made(tiny: TinyModel, device: torch.device) -> dict[str, Tensor]:
    """Use a tiny model around the component on a device; return all that comes of it by name."""
    case, model = tiny.case, tiny.model
    model.to(device).eval().zero_grad()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = {"the loss": torch.tensor(tiny.backward(tiny.present()))}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            made[f"the gradient of {name}"] = parameter.grad
    if case.kind == Kind.GENERATION_ENCODER:
        subject = subject_of(case)
        given = {name: each.to(device) for name, each in subject.inputs(ALL).items()}
        made["what codes become"] = run(subject, tiny.component, given)
    if case.kind == Kind.LANGUAGE_MODEL or case.path == "text":
        words = model.ask("which ?", max_new_tokens=4, temperature=1.0)
        made["words"] = torch.tensor([ord(letter) for letter in words])
    if case.kind == Kind.LANGUAGE_MODEL or case.path in ("codes", "codebooks", "latents"):
        for modality in model.generation:
            made[modality] = _generate(model, modality)
    return made


def _generate(model: Any, modality: str) -> Tensor:
    made: Tensor = model.generate(WORDS[0], modality=modality, return_codes=True)
    return made
