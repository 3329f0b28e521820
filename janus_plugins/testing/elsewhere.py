"""A stand-in for an accelerator: tensors that say they are on another device, computed on the CPU.

Under `elsewhere()` tensors of the two devices meet as they do under CUDA: they may not, and what the host
must wait for (a value read, a size that depends on values) is counted. So a machine without an accelerator
finds the `torch.arange` without `device=`. torch knows device types that no build without their hardware
uses; of these "lazy" also runs backward.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

AWAY = torch.device("lazy", 0)
"""The device that tensors made under `elsewhere()` may be on."""

_COUNTERS: list[Counter[str]] = []
"""Of every `elsewhere()` that is open, the innermost last."""

_CPU = torch.device("cpu")
_DATA: Any = Tensor.data
_aten = torch.ops.aten
_BETWEEN = (_aten.copy_.default, _aten._to_copy.default)
_INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
"""May take indices that are on the CPU, which are copied over."""

_SIZED_BY_VALUES = (
    "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive",
    "aten::repeat_interleave", "aten::equal", "aten::is_nonzero", "aten::_local_scalar_dense",
    "aten::bincount",
)  # fmt: skip


class AwayTensor(Tensor):
    """Hold a CPU tensor that says it is on `AWAY`."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> AwayTensor:
        """Wrap a CPU tensor."""
        made: AwayTensor = Tensor._make_wrapper_subclass(
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=AWAY,
        )
        made.here = here
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Show the values, and that they are away."""
        return f"AwayTensor({self.here!r})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Compute on the CPU, also where the mode does not reach, as in a thread of the backward pass."""
        return _dispatched(func, args, kwargs or {}, _COUNTERS[-1] if _COUNTERS else Counter())


class Elsewhere(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Compute what is asked of `AWAY`.

    Attributes:
        waits: how often the host waited for the device, by operator.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute one operator."""
        return _dispatched(operator, args, kwargs or {}, self.waits)


class _Calls(TorchFunctionMode):
    """Answer the calls that torch does not make of operators."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make a tensor here and move it, and read values through a copy on the CPU."""
        kwargs = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor) and _is_away(kwargs.get("device")):
            target = kwargs.pop("device")
            return function(*args, **kwargs).to(target)
        if function is Tensor.new_tensor and _is_away(kwargs.get("device", args[0].device)):
            kwargs.setdefault("dtype", args[0].dtype)
            return torch.tensor(*args[1:], **{**kwargs, "device": None}).to(AWAY)
        if function in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], AwayTensor):
            args = (args[0], _listed(args[1]), *args[2:])
        if function == _DATA.__get__ and isinstance(args[0], AwayTensor):
            return args[0].detach()
        if function == _DATA.__set__ and any(isinstance(each, AwayTensor) for each in args):
            return _assign(*args)
        if function is Tensor.tolist and isinstance(args[0], AwayTensor):
            return args[0].cpu().tolist()
        if function in (Tensor.numpy, Tensor.__array__) and isinstance(args[0], AwayTensor):
            raise TypeError(f"can't convert a tensor on {AWAY} to numpy; copy it to the CPU first")
        return function(*args, **kwargs)


def _listed(index: Any) -> Any:
    """Return an index whose lists are tensors on the CPU, which torch would make on the device."""
    if isinstance(index, tuple):
        return tuple(_listed(each) for each in index)
    return torch.tensor(index) if isinstance(index, list) else index


def _is_away(device: Any) -> bool:
    return device is not None and torch.device(device).type == AWAY.type


@contextmanager
def elsewhere() -> Iterator[Elsewhere]:
    """Let modules and tensors move to `AWAY`, and compute there.

    Yields:
        What counts the host's waits.
    """
    asked, autocasts = torch._has_compatible_shallow_copy_type, torch.is_autocast_enabled

    def compatible(input: Tensor, from_: Tensor) -> bool:
        return isinstance(input, AwayTensor) or isinstance(from_, AwayTensor) or asked(input, from_)

    def enabled(*kind: str) -> bool:
        return kind != (AWAY.type,) and autocasts(*kind)

    autocast = partial(_autocast, torch.autocast)
    answers: list[tuple[Any, str, Any]] = [
        # A module that moves keeps its parameters, as between the CPU and CUDA: ties and optimisers stay.
        (torch, "_has_compatible_shallow_copy_type", compatible),
        # A device's module is asked for random states by activation checkpointing, unless nothing ran there.
        (torch, AWAY.type, SimpleNamespace(_initialized=False)),
        (torch, "is_autocast_enabled", enabled),
        (torch, "autocast", autocast),
        (torch.amp, "autocast", autocast),
    ]
    with ExitStack() as stack:
        for room, name, value in answers:
            stack.enter_context(patch.object(room, name, value, create=True))
        mode = stack.enter_context(Elsewhere())
        stack.enter_context(_Calls())
        _COUNTERS.append(mode.waits)
        stack.callback(_COUNTERS.pop)
        yield mode


def _autocast(real: Any, device_type: str, *some: Any, **more: Any) -> Any:
    return nullcontext() if device_type == AWAY.type else real(device_type, *some, **more)


def _assign(tensor: Any, value: Tensor) -> None:
    """Do `tensor.data = value` where one of the two is away."""
    if isinstance(tensor, AwayTensor) and isinstance(value, AwayTensor):
        with torch._C.DisableTorchFunctionSubclass():
            _DATA.__set__(tensor, value)
        tensor.here = value.here
        return
    fresh = AwayTensor(value.here) if isinstance(value, AwayTensor) else value.detach()
    fresh.requires_grad_(tensor.requires_grad)
    learnt, gradient = isinstance(tensor, nn.Parameter), tensor.grad
    if isinstance(fresh, AwayTensor):
        tensor.__class__, tensor.here = AwayTensor, fresh.here
        if learnt:
            tensor._is_param = True
    else:
        del tensor.here
        tensor.__class__ = nn.Parameter if learnt else Tensor
    torch._C._swap_tensor_impl(tensor, fresh)
    if gradient is not None:
        tensor.grad = gradient.to(tensor.device)


def _dispatched(operator: Any, args: Any, kwargs: dict[str, Any], waits: Counter[str]) -> Any:
    tensors = list(_tensors([*args, *kwargs.values()]))
    away = any(isinstance(each, AwayTensor) for each in tensors)
    target = kwargs.get("device")
    goes = away if target is None else _is_away(target)
    if operator is _aten.copy_.default:
        goes = isinstance(args[0], AwayTensor)
    if not away and not goes:
        return operator(*args, **kwargs)
    name = operator._schema.name
    if name == "aten::_fused_sdp_choice":
        return 0  # the way that is made of plain operators
    if operator not in _BETWEEN:
        _check(operator, name, tensors, [*args, *kwargs.values()])
    if _waits(operator, name, args, kwargs, goes):
        waits[name.removeprefix("aten::")] += 1
    given = {key: _CPU if key == "device" and value is not None else value for key, value in kwargs.items()}
    made = operator(
        *_each(AwayTensor, _here, args),
        **{key: _each(AwayTensor, _here, each) for key, each in given.items()},
    )
    if not goes:
        return made
    if name == "aten::_unsafe_view":  # shares memory, and does not say so: autograd adds to it in place
        made = made.clone()
    wrapped = _each(Tensor, AwayTensor, made)
    if not operator.is_view and not operator._schema.is_mutable:
        return wrapped
    return return_and_correct_aliasing(operator, args, kwargs, wrapped)  # type: ignore[no-untyped-call]


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield an operator's tensors, also of its lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _each(kind: type, change: Callable[[Any], Any], value: Any) -> Any:
    """Return a value with every tensor of a kind changed, also in lists."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)(_each(kind, change, one) for one in value)
    return value


def _here(tensor: AwayTensor) -> Tensor:
    return tensor.here


def _check(operator: Any, name: str, tensors: list[Tensor], values: list[Any]) -> None:
    """Refuse what CUDA refuses: operands on two devices, and numbers drawn by the CPU's generator."""
    strangers = [each for each in tensors if not isinstance(each, AwayTensor) and each.dim()]
    if name in _INDEXED:
        strangers = [each for each in strangers if each is tensors[0] or each.is_floating_point()]
    if strangers:
        raise RuntimeError(
            f"{operator}: expected all tensors to be on the same device, but found a tensor "
            f"{list(strangers[0].shape)} on the CPU beside others on {AWAY}"
        )
    if any(isinstance(each, torch.Generator) and each.device.type == "cpu" for each in values):
        raise RuntimeError(f"{operator}: a generator of the CPU cannot draw a tensor on {AWAY}")


def _waits(operator: Any, name: str, args: Any, kwargs: dict[str, Any], goes: bool) -> bool:
    """Answer whether the host must wait: for values, or for a copy that it was not asked to leave behind."""
    if operator in _BETWEEN:
        source = args[1] if operator is _aten.copy_.default else args[0]
        crosses = isinstance(source, AwayTensor) != goes
        left = kwargs.get("non_blocking") or (operator is _aten.copy_.default and any(args[2:]))
        return crosses and not (goes and left)
    if name in _INDEXED:
        indices = [each for each in args[1] if each is not None]
        return any(
            each.dtype in (torch.bool, torch.uint8) or not isinstance(each, AwayTensor) for each in indices
        )
    return name in _SIZED_BY_VALUES
