"""The rule that a component computes where it is, tried on a device that is not the CPU (`elsewhere`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from janus_plugins.core.kinds import Kind
from janus_plugins.testing.case import Case
from janus_plugins.testing.elsewhere import AWAY, elsewhere
from janus_plugins.testing.report import Broken, Skipped, described, expect
from janus_plugins.testing.rules.built import close, difference, run
from janus_plugins.testing.subjects import ALL, Inputs, subject_of
from janus_plugins.testing.tiny_model import WORDS, TinyModel

Work = Callable[[Case, torch.device], dict[str, Tensor]]


def device(case: Case) -> None:
    """Check that on another device than the CPU it gives the same answers, losses and gradients."""
    compared: dict[str, Work] = {"answers": _answer, "losses and gradients in a tiny model": _gradients}
    if case.kind != Kind.UNDERSTANDING_ENCODER and case.path != "features":
        compared["generated items or words"] = _generated
    for what, work in compared.items():
        expected = _on_the_cpu(case, work)
        made = _away(case, work, what)
        for name, value in expected.items():
            fine = close(made[name], value)
            expect(fine, f"{what} on a device as on the CPU", f"{name}: {difference(made[name], value)}")


def _on_the_cpu(case: Case, work: Work) -> dict[str, Tensor]:
    try:
        return work(case, torch.device("cpu"))
    except Skipped:
        raise
    except Exception as error:  # which other rules name
        raise Skipped("it does not run on the CPU either") from error


def _away(case: Case, work: Work, what: str) -> dict[str, Tensor]:
    try:
        with elsewhere():
            return {name: value.cpu() for name, value in work(case, AWAY).items()}
    except (RuntimeError, TypeError, NotImplementedError) as error:
        wanted = f"{what} on a device that is not the CPU (make tensors with device=x.device)"
        raise Broken(wanted, described(error)) from error


def _answer(case: Case, device: torch.device) -> dict[str, Tensor]:
    subject = subject_of(case)
    given: Inputs = {name: each.to(device) for name, each in subject.inputs(ALL).items()}
    return {"the answer": run(subject, case.build().eval().to(device), given)}


def _gradients(case: Case, device: torch.device) -> dict[str, Tensor]:
    tiny = TinyModel(case)
    tiny.model.to(device).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = {"the loss": torch.tensor(tiny.backward(tiny.present()))}
    for name, parameter in tiny.model.named_parameters():
        if parameter.grad is not None:
            made[f"the gradient of {name}"] = parameter.grad
    return made


def _generated(case: Case, device: torch.device) -> dict[str, Tensor]:
    tiny = TinyModel(case)
    model: Any = tiny.model.to(device).eval()
    words = model.ask("which ?", max_new_tokens=4, temperature=1.0)
    made = {"words": torch.tensor([ord(letter) for letter in words])}
    for modality in model.generation:
        made[modality] = model.generate(WORDS[0], modality=modality, return_codes=True)
    return made
