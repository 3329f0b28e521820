"""Rules for data sources."""

from __future__ import annotations

import json
import pickle
import re
from itertools import islice
from typing import Any

from janus_plugins.core.plan import Part
from janus_plugins.core.samples import TASKS, Item, Sample
from janus_plugins.data.sources import is_streaming, open_source
from janus_plugins.testing.case import OWNER, Case
from janus_plugins.testing.report import Broken, Skipped, expect
from janus_plugins.testing.same import same

FEW = 8


def opened(case: Case) -> Any:
    """Open the source anew."""
    return open_source(Part(case.address, case.spec, OWNER, case.config, case.facts))


def some(source: Any) -> list[Sample]:
    """Return a few samples: the first ones, and the last one where there is an end."""
    if is_streaming(source):
        return [source.sample(row, index) for index, (row, _) in enumerate(islice(source.rows(None), FEW))]
    size = len(source)
    return [source[index] for index in sorted({*range(min(FEW, size)), size - 1})]


def samples(case: Case) -> None:
    """Check that facts equal behaviour: well-formed samples of the declared tasks and modalities."""
    source = opened(case)
    if not is_streaming(source):
        expect(len(source) > 0, "at least one sample (len() above 0)", len(source))
    keys = set()
    for sample in some(source):
        expect(isinstance(sample, Sample), "a core.samples.Sample", type(sample).__name__)
        tasks = sorted(case.facts.tasks)
        fine = sample.task in TASKS and sample.task in case.facts.tasks
        expect(fine, f"a task of facts.tasks, {tasks}", repr(sample.task))
        expect(bool(sample.key), "a key that names the sample", repr(sample.key))
        keys.add(sample.key)
        _check_turns(case, sample)
    expect(len(keys) > 1 or len(some(source)) == 1, "different keys for different samples", keys)


def _check_turns(case: Case, sample: Sample) -> None:
    roles = {turn.role for turn in sample.turns}
    expect(roles <= {"system", "user", "assistant"}, "roles system, user and assistant", sorted(roles))
    wanted = "an assistant's turn, which is what is learnt"
    expect("assistant" in roles, f"{wanted}, in {sample.key}", sorted(roles))
    for part in (part for turn in sample.turns for part in turn.parts):
        expect(isinstance(part, str | Item), "parts that are text or an Item", type(part).__name__)
        if isinstance(part, Item):
            side = "generation" if part.learn else "understanding"
            declared = sorted(getattr(case.facts, side))
            fine = part.modality in declared
            expect(
                fine,
                f"the modality of an Item(learn={part.learn}) in facts.{side}, {declared}",
                part.modality,
            )


def same_samples(case: Case) -> None:
    """Check that the same index gives the same sample each time, in every process that opens the source."""
    first, again = some(opened(case)), some(opened(case))
    expect(same(first, again), "the same samples from a source opened twice", "other ones")
    source = opened(case)
    if not is_streaming(source):
        twice = [source[index] for index in (0, len(source) - 1, 0)]
        expect(same(twice[0], twice[2]), "the same sample for the same index", "another one")


def resumes(case: Case) -> None:
    """Check that a source read in order goes on from any state after the row that the state stands behind."""
    source = opened(case)
    if not is_streaming(source):
        raise Skipped("it is read by index")
    read = list(islice(source.rows(None), FEW))
    for index, (row, state) in enumerate(read[:-1]):
        pickle.dumps(row)
        try:
            plain = json.loads(json.dumps(dict(state)))
        except TypeError as error:
            raise Broken("a state of plain data", str(error)) from error
        following = next(iter(opened(case).rows(plain)))[0]
        wanted = f"row {index + 1} first when reading goes on from the state after row {index}"
        expect(same(following, read[index + 1][0]), wanted, "another row")


def texts(case: Case) -> None:
    """Check that the texts offered for training a tokenizer hold every word of the samples."""
    source = opened(case)
    if not hasattr(source, "texts"):
        raise Skipped("it offers no texts()")
    known = {word for text in source.texts() for word in re.findall(r"\w+", text)}
    parts = [part for sample in some(source) for turn in sample.turns for part in turn.parts]
    used = {word for part in parts if isinstance(part, str) for word in re.findall(r"\w+", part)}
    expect(used <= known, "every word of the samples in texts()", f"{sorted(used - known)[:5]} missing")
