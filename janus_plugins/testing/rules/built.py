"""Rules for every component that is an `nn.Module`, whatever it is for."""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from janus_plugins.core.kinds import Kind
from janus_plugins.testing.case import Case
from janus_plugins.testing.report import Broken, Skipped, expect
from janus_plugins.testing.subjects import ALL, Inputs, Subject, subject_of

TOLERANCE = 1e-4
"""Of the largest value: what two orders of the same float32 sums may differ by."""

LARGE = 5_000_000
"""So many parameters take minutes, not seconds: each rule builds a component anew."""

_log = logging.getLogger(__name__)


def run(subject: Subject, module: nn.Module, inputs: Inputs, seed: int = 0) -> Tensor:
    """Run a component without gradients, torch's random numbers from `seed`."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        return subject.run(module, inputs)


def close(one: Tensor, other: Tensor) -> bool:
    """Answer whether two tensors are equal up to float32 rounding."""
    if one.shape != other.shape:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    scale = max(1.0, float(one.abs().max())) if one.numel() else 1.0
    return torch.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE * scale, equal_nan=True)


def builds(case: Case) -> None:
    """Check that the factory, called with the config and its facts, answers an `nn.Module`."""
    module = case.build()
    expect(isinstance(module, nn.Module), "an nn.Module", "something else")
    parameters = sum(one.numel() for one in module.parameters() if not is_lazy(one))
    if parameters > LARGE:
        _log.warning(
            "%s/%s is checked with %.0f million parameters, which takes long; give its config a tiny(), or "
            "smaller options (docs/plugins/testing.md)",
            *(case.kind, case.spec.name, parameters / 1e6),
        )


def meta(case: Case) -> None:
    """Check that the component builds on torch's meta device, as `explain` does."""
    placed = {parameter.device.type for parameter in case.build(device="meta").parameters()}
    expect(placed <= {"meta"}, "every parameter on the meta device when built under it", sorted(placed))


def repeatable(case: Case) -> None:
    """Check that the same seed gives the same weights, and the same inputs the same answer."""
    one, two = case.build(seed=5).eval(), case.build(seed=5).eval()
    for name, value in one.state_dict().items():
        if not isinstance(value, Tensor):
            continue  # the rule `saved` names it
        expect(
            torch.equal(value, two.state_dict()[name]), "equal weights from equal seeds", f"{name} differs"
        )
    subject = subject_of(case)
    inputs = subject.inputs(ALL)
    # A head's losses may draw noise (diffusion); in eval mode nothing else may.
    seed = 0 if case.kind == Kind.HEAD else 1
    first, again = run(subject, one, inputs), run(subject, one, inputs, seed)
    expect(close(first, again), "the same answer from the same module twice", difference(first, again))
    other = run(subject, two, inputs)
    expect(close(first, other), "the same answer from an equal module", difference(first, other))


def alone(case: Case) -> None:
    """Check that an item's answer does not depend on its batch mates."""
    subject, module = subject_of(case), case.build().eval()
    inputs = subject.inputs(ALL)
    together = run(subject, module, inputs)
    if not close(together, run(subject, module, inputs, seed=1)):
        raise Skipped("the answer draws random numbers")
    for row, item in enumerate(ALL):
        mine = subject.part(together, row, item)
        single = subject.part(run(subject, module, subject.inputs([item])), 0, item)
        wanted = f"item {item} of {len(ALL)} to give the same answer alone as in the batch"
        expect(close(single, mine), wanted, difference(single, mine))


def bf16(case: Case) -> None:
    """Check that in bfloat16 it takes float32 inputs and answers in bfloat16 (losses: float32)."""
    subject, module = subject_of(case), case.build()
    if not any(parameter.is_floating_point() for parameter in module.parameters()):
        raise Skipped("it has no parameters")
    answer = run(subject, module.to(torch.bfloat16).eval(), subject.inputs(ALL))
    wanted = torch.float32 if case.kind == Kind.HEAD else torch.bfloat16
    if case.kind == Kind.GENERATION_ENCODER:
        expect(answer.is_floating_point(), "decoded items in floating point", answer.dtype)
    else:
        expect(answer.dtype == wanted, f"an answer in {wanted} of a module in bfloat16", answer.dtype)
    expect(bool(answer.isfinite().all()), "finite values in bfloat16", "NaN or infinity")


def inputs(case: Case) -> None:
    """Check that the component does not edit its inputs in place."""
    subject = subject_of(case)
    for mode in (True, False):
        given = subject.inputs(ALL)
        before = {name: tensor.clone() for name, tensor in given.items()}
        run(subject, case.build().train(mode), given)
        for name, tensor in before.items():
            wanted = f"the input {name!r} to stay as it was"
            same = given[name].shape == tensor.shape and torch.equal(given[name], tensor)
            expect(same, wanted, "it was edited in place; work on a copy")


def gradients(case: Case) -> None:
    """Check that every parameter that may learn is reached by a finite gradient."""
    subject, module = subject_of(case), case.build().train()
    own = [(name, each) for name, each in subject.parameters(module) if each.requires_grad]
    if not own:
        raise Skipped("it has no parameters that learn")
    loss = _learnt(subject, module, subject.inputs(ALL))
    if loss is None:
        raise Skipped("it has no reconstruction_loss to learn by")
    expect(loss.requires_grad, "an answer that gradients flow through", "one that is cut from the graph")
    loss.backward()  # type: ignore[no-untyped-call]
    missed = [name for name, parameter in own if parameter.grad is None]
    expect(
        not missed,
        "a gradient for every parameter that requires one (delete or freeze what is never used)",
        f"none for {_some(missed)}",
    )
    bad = [name for name, parameter in own if not _gradient(parameter).isfinite().all()]
    expect(not bad, "finite gradients", f"NaN or infinity in {_some(bad)}")
    still = all(not _gradient(parameter).any() for _, parameter in own)
    expect(not still, "gradients other than zero", "zeros everywhere")


def frozen(case: Case) -> None:
    """Check that a frozen component stays frozen, and lets the gradient of what is before it pass."""
    subject, module = subject_of(case), case.build().requires_grad_(False).train()
    before = {name: each.detach().clone() for name, each in module.named_parameters()}
    leaves = {
        name: each.requires_grad_() for name, each in subject.inputs(ALL).items() if each.is_floating_point()
    }
    given = {**subject.inputs(ALL), **{name: leaf * 1 for name, leaf in leaves.items()}}
    answer = _answer(subject, module, given)
    if answer.requires_grad:
        answer.float().square().sum().backward()  # type: ignore[no-untyped-call]
    for name, parameter in module.named_parameters():
        fixed = (
            not parameter.requires_grad and parameter.grad is None and torch.equal(parameter, before[name])
        )
        what = "requires_grad was set again" if parameter.requires_grad else "it got a gradient or changed"
        expect(fixed, "a frozen component to leave its parameters alone", f"{name}: {what}")
    _check_passed(case, leaves)


def _check_passed(case: Case, leaves: dict[str, Tensor]) -> None:
    """Adapters, heads and language models pass gradients on to what is before them."""
    entering = {Kind.ADAPTER: "source", Kind.HEAD: "hidden", Kind.LANGUAGE_MODEL: "embeds"}.get(case.kind)
    if entering not in leaves:
        return
    passed = leaves[entering].grad
    wanted = f"a gradient for {entering!r}, through the frozen component"
    expect(passed is not None and bool(passed.any()), wanted, "none")


def saved(case: Case) -> None:
    """Check that what it answers is in its state dict: safetensors bring it back."""
    from safetensors.torch import load_file, save_file

    subject, one, two = subject_of(case), case.build(seed=1).eval(), case.build(seed=2).eval()
    others = [
        f"{name}: {type(each).__name__}"
        for name, each in one.state_dict().items()
        if not isinstance(each, Tensor)
    ]
    expect(not others, "a state dict of tensors alone, which safetensors can hold", ", ".join(others))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "component.safetensors"
        save_file({name: each.clone().contiguous() for name, each in one.state_dict().items()}, path)
        two.load_state_dict(load_file(path))
    answers = [run(subject, module, subject.inputs(ALL)) for module in (one, two)]
    wanted = "the same answer after saving and loading the state dict (register state as parameter or buffer)"
    expect(close(*answers), wanted, difference(*answers))


def _answer(subject: Subject, module: nn.Module, given: Inputs) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return subject.run(module, given)


def _learnt(subject: Subject, module: nn.Module, given: Inputs) -> Tensor | None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return subject.learnt(module, given)


def _gradient(parameter: Any) -> Tensor:
    gradient: Tensor = parameter.grad
    return gradient


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def difference(one: Tensor, other: Tensor) -> str:
    """Say how two tensors differ."""
    if one.shape != other.shape:
        return f"shapes {list(one.shape)} and {list(other.shape)}"
    if not one.is_floating_point():
        return f"{int((one != other).sum())} of {one.numel()} values differ"
    return f"values that differ by up to {float((one - other).abs().max()):.3g}"


def shape_is(answer: Tensor, wanted: tuple[int, ...], what: str) -> None:
    """Raise `Broken` unless a tensor has a shape and finite values."""
    if not isinstance(answer, Tensor):
        raise Broken(f"{what} as a tensor {list(wanted)}", f"a {type(answer).__name__}")
    expect(tuple(answer.shape) == wanted, f"{what} of shape {list(wanted)}", list(answer.shape))
    if answer.is_floating_point():
        expect(bool(answer.isfinite().all()), f"{what} to be finite", "NaN or infinity")
