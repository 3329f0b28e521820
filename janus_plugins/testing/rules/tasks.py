"""Rules for evaluation tasks: each is run on a tiny model of partners, with a few made samples."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from janus_plugins.core.catalogue import load_factory
from janus_plugins.core.samples import (
    Sample,
    generation_sample,
    question_sample,
    understanding_sample,
)
from janus_plugins.testing.case import Case
from janus_plugins.testing.items import cycled, pictures
from janus_plugins.testing.report import Broken, Skipped, expect
from janus_plugins.testing.same import same
from janus_plugins.testing.tiny_model import WORDS, TinyModel

NUM_SAMPLES = 8


class Samples:
    """Be a source of given samples, read by index."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        """Return sample `index`."""
        return self._samples[index]


def made_samples(case: Case, task: str) -> Samples:
    """Return samples of a task about pictures, or about the items that the caller gave."""
    items = cycled(list(case.given) if case.given is not None else pictures())
    made = []
    for index in range(NUM_SAMPLES):
        item, word, key = items[index % len(items)], WORDS[index % len(WORDS)], f"{task}[{index}]"
        made.append(
            {
                "text": question_sample("which ?", word, key),
                "understanding": understanding_sample("image", item, "which ?", word, key),
                "generation": generation_sample(word, "image", item, key),
            }[task]
        )
    return Samples(made)


def score(case: Case, task: str) -> tuple[dict[str, Any], Any]:
    """Run the task on samples of one kind; return what it answers, and the model."""
    model = TinyModel(case).model.eval()
    others = {name: made_samples(case, task) for name in case.facts.sources}
    made: Any = load_factory(case.spec)(case.config, case.facts)
    return made(model, made_samples(case, task), others), model


def tried(case: Case) -> list[str]:
    """Name the tasks whose samples it is tried on; interleaved samples differ too much to be made up."""
    tasks = sorted(case.facts.tasks - {"interleaved"})
    if not tasks:
        raise Skipped("it scores interleaved samples alone")
    return tasks


def callable_task(case: Case) -> None:
    """Check that the factory answers something to be called with a model, a source and other sources."""
    made = load_factory(case.spec)(case.config, case.facts)
    expect(callable(made), "a task to be called with (model, source, others)", type(made).__name__)
    expect(bool(case.facts.tasks), "at least one task in facts.tasks", "none")


def scores(case: Case) -> None:
    """Check that a finite "score", ceilings where there are any, and plain data (JSON) come back."""
    for task in tried(case):
        answer, _ = score(case, task)
        expect(isinstance(answer, Mapping), "a mapping", type(answer).__name__)
        expect("score" in answer, 'a number under "score"', sorted(answer))
        ceilings = answer.get("ceilings", {})
        for name, value in [("score", answer["score"]), *ceilings.items()]:
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            expect(number, f"a finite number under {name!r}", repr(value))
        try:
            json.dumps(dict(answer))
        except (TypeError, ValueError) as error:
            raise Broken("an answer of plain data (JSON)", str(error)) from error


def same_score(case: Case) -> None:
    """Check that the same model and samples give the same answer, whatever the global random state is."""
    for task in tried(case):
        answers = []
        for seed in (1, 2):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                answers.append(dict(score(case, task)[0]))
        expect(same(*answers), f"the same answer twice, {answers[0]}", answers[1])


def leaves_model(case: Case) -> None:
    """Check that the model is left as it was: its weights, and the mode of every module."""
    for task in tried(case):
        before = {name: each.clone() for name, each in TinyModel(case).model.state_dict().items()}
        _, model = score(case, task)
        for name, each in model.state_dict().items():
            expect(torch.equal(each, before[name]), "the weights to stay as they were", f"{name} changed")
        training = [name for name, module in model.named_modules() if module.training]
        expect(not training, "every module in eval mode, as before", f"{training[:3]} in training mode")
