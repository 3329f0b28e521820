"""Rules for the processors of encoders, which run in data workers."""

from __future__ import annotations

import pickle
import random
from typing import Any

import numpy as np
import torch

from janus_plugins.core.errors import BadSample
from janus_plugins.sequence.assemble import collate_items
from janus_plugins.testing.case import Case
from janus_plugins.testing.report import Broken, expect
from janus_plugins.testing.same import copied, same


def pickles(case: Case) -> None:
    """Check that a processor pickles, since data workers may be other processes."""
    processor = case.processor()
    wanted = "a processor that pickles, for data workers (no lambdas, no open files)"
    try:
        copy = pickle.loads(pickle.dumps(processor))
    except Exception as error:
        raise Broken(wanted, f"{type(error).__name__}: {error}") from error
    expect(same(copy.dummy(), processor.dummy()), "the same dummy from the pickled copy", "another one")
    if case.raw:
        first, other = processor(case.raw[0]), copy(case.raw[0])
        expect(same(first, other), "the same arrays from the pickled copy", "other ones")


def arrays(case: Case) -> None:
    """Check that a processor answers named arrays that stack, and leaves the raw item alone."""
    processor = case.processor()
    for value in case.raw:
        before = copied(value)
        made = processor(value)
        _check_arrays(made)
        expect(same(value, before), "the raw item to stay as it was", "the processor edited it in place")
    collate_items([processor(value) for value in case.raw])


def _check_arrays(made: Any) -> None:
    expect(isinstance(made, dict) and bool(made), "a dict of arrays by name", f"{made!r:.80}")
    for name, array in made.items():
        expect(isinstance(array, np.ndarray), f"{name!r} to be a numpy array", type(array).__name__)
        expect(array.dtype.kind in "biuf", f"numbers in {name!r}", f"dtype {array.dtype}")
        expect(bool(np.isfinite(array).all()), f"finite numbers in {name!r}", "NaN or infinity")


def global_state(case: Case) -> None:
    """Check that a processor neither reads nor moves global random state."""
    made = []
    for seed in (1, 2):
        kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
        try:
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            before = _random_state()
            processor = case.processor()
            made.append([processor(value) for value in case.raw])
            moved = _random_state() != before
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])
            torch.set_rng_state(kept[2])
        expect(not moved, "the global random state to stay as it was", "the processor drew from it")
    expect(same(*made), "the same arrays whatever the global random state is", "other ones")
    processor = case.processor()
    backwards = [processor(value) for value in reversed(case.raw)]
    expect(same(made[0], backwards[::-1]), "the same arrays in any order of items", "other ones")


def _random_state() -> tuple[object, ...]:
    return random.getstate(), str(np.random.get_state()), bytes(torch.get_rng_state().numpy())


def refuses(case: Case) -> None:
    """Check that a value that is no item at all raises `BadSample`, which quarantines it."""
    wanted = "BadSample for a value that is no item at all (object())"
    try:
        made = case.processor()(object())
    except BadSample:
        return
    except Exception as error:
        raise Broken(wanted, f"{type(error).__name__}: {error}") from error
    raise Broken(wanted, f"arrays {sorted(made)}" if isinstance(made, dict) else f"{made!r:.80}")


def dummy_arrays(case: Case) -> None:
    """Check that a dummy is like an item: same names, types and axes; and finite."""
    dummy = case.processor().dummy()
    _check_arrays(dummy)
    for item in case.arrays:
        expect(list(item) == list(dummy), f"the dummy's arrays to be {list(item)}", list(dummy))
        for name, array in item.items():
            mine = (dummy[name].dtype, dummy[name].shape[1:])
            wanted = (array.dtype, array.shape[1:])
            expect(mine == wanted, f"the dummy's {name!r} as (dtype, shape[1:]) {wanted}", mine)
    collate_items([*case.arrays, dummy])
