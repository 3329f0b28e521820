from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from janus_plugins.core.plan import RunPlan
from janus_plugins.data.prepare import Preparer
from janus_plugins.data.sources import open_source
from janus_plugins.door import plan as read_plan
from janus_plugins.model.compose import compose_plan
from janus_plugins.model.unified import UnifiedModel
from janus_plugins.sequence.assemble import Prepared, assemble
from janus_plugins.sequence.batch import Batch
from tests.tiny import write_tiny


@pytest.fixture(scope="session")
def plan(tmp_path_factory: pytest.TempPathFactory) -> RunPlan:
    return read_plan(write_tiny(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="session")
def model(plan: RunPlan) -> UnifiedModel:
    return compose_plan(plan)


@pytest.fixture(scope="session")
def prepared(plan: RunPlan, model: UnifiedModel) -> dict[str, list[Prepared]]:
    """Three samples of each source, laid out by the last stage's rules."""
    preparer = Preparer(plan, model.tokenizer, plan.run.stages[-1])
    samples: dict[str, list[Prepared]] = {}
    for name in ("read", "draw", "sort"):
        source, data = open_source(plan.data[name].part), plan.data[name]
        rng = np.random.default_rng(0)
        samples[name] = [preparer.prepare(source[index], data, rng) for index in (0, 5, 11)]
    return samples


@pytest.fixture(scope="session")
def batch_of(plan: RunPlan, model: UnifiedModel) -> Callable[[list[list[Prepared]]], Batch]:
    preparer = Preparer(plan, model.tokenizer, plan.run.stages[-1])
    return lambda rows: assemble(rows, preparer.dummies, preparer.pad)
