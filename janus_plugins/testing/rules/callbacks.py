"""Rules for training callbacks."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from janus_plugins.core.catalogue import load_factory
from janus_plugins.testing.case import Case
from janus_plugins.testing.rehearsal import STEPS, Rehearsal
from janus_plugins.testing.report import Broken, Skipped, expect
from janus_plugins.testing.same import same
from janus_plugins.training.callbacks import MOMENTS, misspelt

CUTS = (1, 5, STEPS, STEPS + 3)
"""Steps after which a rehearsal is broken off and gone on with."""


def moments(case: Case) -> None:
    """Check that the factory answers an object with at least one moment, and none that is misspelt."""
    made = load_factory(case.spec)(case.config, case.facts)
    problems = misspelt(made)
    expect(not problems, f"methods on_... that are moments: {', '.join(MOMENTS)}", "; ".join(problems))
    expect(any(hasattr(made, name) for name in MOMENTS), f"one of {', '.join(MOMENTS)}", type(made).__name__)
    stored = [hasattr(made, name) for name in ("state_dict", "load_state_dict")]
    expect(len(set(stored)) == 1, "both of state_dict and load_state_dict, or neither", "one of them")


def whole_run(case: Case) -> None:
    """Check that a whole run passes without an error; only the main rank writes, and the model stays."""
    for rank, error in ((0, None), (1, RuntimeError("rehearsed"))):
        with TemporaryDirectory() as folder:
            played = Rehearsal(case, Path(folder), rank, ranks=2)
            before = {name: each.clone() for name, each in played.model.state_dict().items()}
            played.play()
            played.end(error)
            written = [path.name for path in Path(folder).rglob("*") if path.is_file()]
        expect(rank == 0 or not written, "rank 1 to write nothing into the run's folder", written)
        for name, each in played.model.state_dict().items():
            expect(torch.equal(each, before[name]), "the model to stay as it was", f"{name} was changed")


def state(case: Case) -> None:
    """Check that its state is plain data, and comes back equal from a callback that was given it."""
    with TemporaryDirectory() as folder:
        played = Rehearsal(case, Path(folder))
        played.play(CUTS[1])
        saved = played.callbacks.state()["states"]
        played.tell("on_train_start")
        if not saved:
            raise Skipped("it keeps no state")
        other = Rehearsal(case, Path(folder))
        _load(other, saved)
        again = other.callbacks.state()["states"]
    expect(same(saved, again), "the same state from a callback that was given it", again)


def goes_on(case: Case) -> None:
    """Check that a run which is broken off and gone on with gets the same requests as an unbroken one."""
    with TemporaryDirectory() as folder:
        whole = Rehearsal(case, Path(folder))
        whole.play()
        for cut in CUTS:
            first = Rehearsal(case, Path(folder))
            first.play(cut)
            second = Rehearsal(case, Path(folder))
            _load(second, first.callbacks.state()["states"])
            second.position, second.run.step = first.position, first.run.step
            second.play()
            asked = first.asked + second.asked
            wanted = f"requests (step, what) {whole.asked}, broken off after step {cut}"
            expect(asked == whole.asked, wanted, f"{asked}; keep what it counts in state_dict")


def ranks_alike(case: Case) -> None:
    """Check that every rank asks for the same, given the same numbers."""
    asked = []
    for rank in (0, 1):
        with TemporaryDirectory() as folder:
            played = Rehearsal(case, Path(folder), rank, ranks=2)
            played.play()
            asked.append(played.asked)
    expect(asked[0] == asked[1], f"rank 1 to ask for what rank 0 asks for, {asked[0]}", asked[1])


def _load(played: Rehearsal, states: dict[str, object]) -> None:
    try:
        played.callbacks.load({"states": states}, inside_stage=True)
    except Exception as error:
        raise Broken("load_state_dict to take what state_dict returned, as JSON", str(error)) from error
