"""What a data worker hands to the training process: one message a step, whatever the number of its tensors.

torch passes every tensor of a message on its own, as shared memory whose handle goes through a socket of
its own: a millisecond or two each, which a small step feels. Here they lie in one.
"""

from __future__ import annotations

import io
import logging
import pickle
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_ALIGNED = 64
"""Bytes at a multiple of which each tensor begins."""

_INLINE = 1 << 18
"""Bytes up to which tensors go through the workers' pipe; more lie in shared memory."""

_log = logging.getLogger(__name__)
_told: list[str] = []


@dataclass(frozen=True)
class Parcel:
    """Hold an object whose tensors lie side by side.

    Attributes:
        frame: the pickled object, without them.
        places: dtype, shape and first byte of each tensor.
        content: their bytes.
    """

    frame: bytes
    places: tuple[tuple[torch.dtype, tuple[int, ...], int], ...]
    content: bytearray | Tensor


def pack(value: Any) -> Parcel:
    """Put an object's tensors together. They must be on the CPU, and of no subclass."""
    frame = io.BytesIO()
    packer = _Packer(frame, pickle.HIGHEST_PROTOCOL)
    packer.dump(value)
    content = torch.empty(packer.length, dtype=torch.uint8)
    for tensor, (dtype, shape, first) in zip(packer.tensors, packer.places, strict=True):
        _view(content, dtype, shape, first).copy_(tensor)
    inline = packer.length <= _INLINE or not _shared(content)
    return Parcel(
        frame.getvalue(), tuple(packer.places), bytearray(content.numpy().data) if inline else content
    )


def _shared(content: Tensor) -> bool:
    """Move a tensor to shared memory, and answer whether there was room.

    Left to the pickler, a refusal would come in a thread of the worker's queue, which drops the message:
    the training process would wait for it in vain.
    """
    try:
        content.share_memory_()  # type: ignore[no-untyped-call]
    except (RuntimeError, OSError) as error:
        _tell_of_pipes(str(error))
        return False
    return True


def _tell_of_pipes(reason: str) -> None:
    """Say once in each process why its steps come slower."""
    if not _told:
        _log.warning(
            "a step has no room in shared memory, so steps go through a pipe, which is slower (%s); "
            "give /dev/shm more, in a container by --shm-size or --ipc=host",
            reason,
        )
        _told.append(reason)


def unpack(parcel: Parcel) -> Any:
    """Return the object; its tensors share the parcel's memory."""
    content = parcel.content
    if not isinstance(content, Tensor):
        content = (
            torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
        )
    tensors = [_view(content, *place) for place in parcel.places]
    return _Unpacker(io.BytesIO(parcel.frame), tensors).load()


def _view(content: Tensor, dtype: torch.dtype, shape: tuple[int, ...], first: int) -> Tensor:
    size = torch.Size(shape).numel() * dtype.itemsize
    if not size:
        return torch.empty(shape, dtype=dtype)
    return content[first : first + size].view(dtype).view(shape)


class _Packer(pickle.Pickler):
    """Pickle all but tensors, and note where each of them is to lie."""

    def __init__(self, file: io.BytesIO, protocol: int) -> None:
        super().__init__(file, protocol)
        self.tensors: list[Tensor] = []
        self.places: list[tuple[torch.dtype, tuple[int, ...], int]] = []
        self.length = 0
        self._known: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> int | None:
        """Return a tensor's number; None for anything else."""
        if type(obj) is not Tensor:
            return None
        if id(obj) not in self._known:
            self._known[id(obj)] = len(self.tensors)
            self.tensors.append(obj)  # keeps it, so that no other gets its id
            self.places.append((obj.dtype, tuple(obj.shape), self.length))
            size = obj.numel() * obj.dtype.itemsize
            self.length += -(-size // _ALIGNED) * _ALIGNED
        return self._known[id(obj)]


class _Unpacker(pickle.Unpickler):
    """Put the tensors back in their places. What it reads comes from our own worker."""

    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, pid: Any) -> Tensor:
        """Return a tensor by its number."""
        tensor: Tensor = self._tensors[pid]
        return tensor
