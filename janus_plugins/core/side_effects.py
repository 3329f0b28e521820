"""What importing a plugin does to everybody: what it changes in the process is put back.

Looks at libraries that are loaded already; imports none.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Bystanders:
    """Remember the process's global state, to be put back each time that foreign code has run.

    Args:
        environment: whether that includes the environment's variables.
    """

    def __init__(self, *, environment: bool = True) -> None:
        self._random = random.getstate()
        self._variables = dict(os.environ) if environment else None
        self._folder = _folder()
        self._handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        self._numpy: Any = None
        self._torch: Any = None
        self._meet_libraries()

    def _meet_libraries(self, fresh: bool = False) -> None:
        """Remember a library's state as it is when it is first seen: what loaded it is not blamed for it.

        Args:
            fresh: whether a library that is seen now was loaded meanwhile: its settings ought to be its own.
        """
        if self._numpy is None and "numpy" in sys.modules:
            self._numpy = sys.modules["numpy"]
            self._numpy_state = self._numpy.random.get_state()
        if self._torch is None and "torch" in sys.modules:
            self._torch = sys.modules["torch"]
            self._torch_state = self._torch.get_rng_state()
            self._settings = {name: get() for name, (get, _) in _settings(self._torch).items()}
            if fresh:
                plain = {"default dtype": self._torch.float32, "default device": self._torch.device("cpu")}
                self._settings |= {**plain, "recording of gradients": True}

    def put_back(self) -> list[str]:
        """Put everything back, and say what had been changed."""
        self._meet_libraries(fresh=True)
        changed = []
        if random.getstate() != self._random:
            random.setstate(self._random)
            changed.append("random's state")
        if self._numpy is not None and not _alike(self._numpy.random.get_state(), self._numpy_state):
            self._numpy.random.set_state(self._numpy_state)
            changed.append("numpy's random state")
        if self._torch is not None:
            changed += self._put_torch_back()
        if self._variables is not None:
            changed += self._put_variables_back(self._variables)
        if self._folder and _folder() != self._folder:
            os.chdir(self._folder)
            changed.append("the working directory")
        return changed + self._put_handlers_back()

    def _put_torch_back(self) -> list[str]:
        changed = []
        if not self._torch.equal(self._torch.get_rng_state(), self._torch_state):
            self._torch.set_rng_state(self._torch_state)
            changed.append("torch's random state")
        for name, (get, put) in _settings(self._torch).items():
            if get() != self._settings[name]:
                put(self._settings[name])
                changed.append(f"torch's {name}")
        return changed

    def _put_variables_back(self, variables: dict[str, str]) -> list[str]:
        moved = {name for name, _ in variables.items() ^ os.environ.items()}
        if moved:
            os.environ.clear()
            os.environ.update(variables)
        return [f"the environment ({', '.join(sorted(moved))})"] if moved else []

    def _put_handlers_back(self) -> list[str]:
        moved = [
            number
            for number, handler in self._handlers.items()
            if handler is not None and signal.getsignal(number) != handler  # None is not of Python
        ]
        if not moved or threading.current_thread() is not threading.main_thread():
            return []
        for number in moved:
            signal.signal(number, self._handlers[number])
        return [f"the handling of {', '.join(number.name for number in moved)}"]


def _settings(torch: Any) -> dict[str, tuple[Callable[[], Any], Callable[[Any], None]]]:
    """Return how torch's settings are read and set, by name."""
    return {
        "number of threads": (torch.get_num_threads, torch.set_num_threads),
        "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
        # Without one tensors are made on the CPU, too, and no function is looked at for it.
        "default device": (
            torch.get_default_device,
            lambda device: torch.set_default_device(None if device.type == "cpu" else device),
        ),
        "recording of gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
    }


def _folder() -> str:
    """Return the working directory, or nothing where it is gone."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def _alike(one: Any, other: Any) -> bool:
    """Compare two states of numpy's generator: a name, an array of words, and three numbers."""
    return bool(one[0] == other[0] and (one[1] == other[1]).all() and one[2:] == other[2:])
