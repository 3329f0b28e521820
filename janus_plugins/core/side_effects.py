"""What importing a plugin does to everybody: moved random states and numbers of threads are put back.

Looks at libraries that are loaded already; imports none.
"""

from __future__ import annotations

import os
import random
import sys
from typing import Any


class Bystanders:
    """Remember the process's global state, to be put back each time that foreign code has run."""

    def __init__(self) -> None:
        self._random = random.getstate()
        self._variables = dict(os.environ)
        self._numpy: Any = None
        self._torch: Any = None
        self._meet_libraries()

    def _meet_libraries(self) -> None:
        """Remember a library's state as it is when it is first seen: what loaded it is not blamed for it."""
        if self._numpy is None and "numpy" in sys.modules:
            self._numpy = sys.modules["numpy"]
            self._numpy_state = self._numpy.random.get_state()
        if self._torch is None and "torch" in sys.modules:
            self._torch = sys.modules["torch"]
            self._torch_state = self._torch.get_rng_state()
            self._threads = self._torch.get_num_threads()

    def put_back(self) -> list[str]:
        """Put everything back, and say what had been changed."""
        changed = []
        if random.getstate() != self._random:
            random.setstate(self._random)
            changed.append("random's state")
        if self._numpy is not None and not _alike(self._numpy.random.get_state(), self._numpy_state):
            self._numpy.random.set_state(self._numpy_state)
            changed.append("numpy's random state")
        if self._torch is not None:
            changed += self._put_torch_back()
        moved = {name for name, _ in self._variables.items() ^ os.environ.items()}
        if moved:
            os.environ.clear()
            os.environ.update(self._variables)
            changed.append(f"the environment ({', '.join(sorted(moved))})")
        self._meet_libraries()
        return changed

    def _put_torch_back(self) -> list[str]:
        changed = []
        if not self._torch.equal(self._torch.get_rng_state(), self._torch_state):
            self._torch.set_rng_state(self._torch_state)
            changed.append("torch's random state")
        if self._torch.get_num_threads() != self._threads:
            self._torch.set_num_threads(self._threads)
            changed.append("torch's number of threads")
        return changed


def _alike(one: Any, other: Any) -> bool:
    """Compare two states of numpy's generator: a name, an array of words, and three numbers."""
    return bool(one[0] == other[0] and (one[1] == other[1]).all() and one[2:] == other[2:])
