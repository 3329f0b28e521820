"""One process group for all tests of this folder that train in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from janus_plugins.training.engine import linear_restored
from janus_plugins.training.world import World, close_world, open_world


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield open_world()
    close_world()
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _plain_linear() -> Iterator[None]:
    """Leave other tests torch's own linear layer, also where an engine is made without a stage's run."""
    with linear_restored():
        yield
