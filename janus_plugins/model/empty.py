"""Models without their weights: composed with empty parameters, then filled one tensor at a time.

A checkpoint of 15 GB then takes 15 GB, in its own precision, and no time goes into random numbers that are
overwritten. Buffers are real from the start: those that no checkpoint holds (rotary frequencies) are
computed when a module is built.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor, nn

from janus_plugins.core.plan import RunPlan
from janus_plugins.model.compose import compose_plan
from janus_plugins.model.unified import UnifiedModel

if TYPE_CHECKING:
    from janus_plugins.core.contracts import Tokenizer


def compose_empty(plan: RunPlan, tokenizer: Tokenizer) -> UnifiedModel:
    """Compose a run's model with parameters on the meta device and buffers on the CPU.

    Raises:
        PluginError: a factory fails.
    """
    with _empty_parameters():
        return compose_plan(plan, tokenizer, weights=False)


class Filler:
    """Give an empty model its tensors, one at a time and in their own dtype."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._places: dict[int, list[tuple[nn.Module, str]]] = {}
        for module in model.modules():
            for leaf, parameter in module._parameters.items():
                if parameter is not None:
                    self._places.setdefault(id(parameter), []).append((module, leaf))

    def put(self, name: str, tensor: Tensor) -> None:
        """Make `tensor` the parameter or buffer of that name, and of every name tied to it."""
        owner, _, leaf = name.rpartition(".")
        module = self._model.get_submodule(owner)
        if leaf in module._buffers:
            module._buffers[leaf] = tensor
            return
        old = module._parameters[leaf]
        assert old is not None
        new = nn.Parameter(tensor, requires_grad=old.requires_grad)
        places = self._places[id(new)] = self._places.pop(id(old))
        for place, key in places:
            place._parameters[key] = new


_ONE_AT_A_TIME = threading.RLock()
"""Two threads that replace a method of torch's and put it back in turn would leave one of theirs there."""


@contextmanager
def _empty_parameters() -> Iterator[None]:
    """Move every parameter to the meta device as it is registered; its initialisation then costs nothing.

    Parameters that other threads make meanwhile stay as they are.
    """
    thread = threading.get_ident()

    def empty(self: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta and threading.get_ident() == thread:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(self, name, parameter)

    with _ONE_AT_A_TIME:
        register = nn.Module.register_parameter
        nn.Module.register_parameter = empty  # type: ignore[assignment, method-assign]
        try:
            yield
        finally:
            nn.Module.register_parameter = register  # type: ignore[method-assign]
