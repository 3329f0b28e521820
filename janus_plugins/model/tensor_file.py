"""One safetensors file, a tensor at a time: reading copies one tensor, writing holds one tensor.

The library's own functions map a file as a whole and copy a shard before it is written, so that twice
the checkpoint is in memory. Here it is at most the largest tensor beside what the caller keeps. The format:
https://huggingface.co/docs/safetensors (header length, JSON header, raw little-endian data).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from janus_plugins.core.errors import CheckpointError

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The format's spelling of each dtype that is read and written."""

KEPT_DTYPES: dict[str, torch.dtype] = {
    **DTYPES,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "C64": torch.complex64,
}
"""With those that a plugin's own parameters and buffers may have; no foreign layout knows them."""

SPELLINGS = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """Describe one tensor without its data.

    Attributes:
        dtype: as safetensors spells it ("BF16"), or torch's own name where it has no spelling.
        shape: sizes of its axes.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Return the size of its data."""
        return math.prod(self.shape) * (DTYPES[self.dtype].itemsize if self.dtype in DTYPES else 0)


def entry_of(tensor: Tensor) -> Entry:
    """Describe a tensor."""
    return Entry(SPELLINGS.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))


class TensorFile:
    """Read a safetensors file.

    Attributes:
        entries: what it holds, by name.
        metadata: its own notes.

    Raises:
        CheckpointError: it cannot be read: truncated, damaged, or no safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, framework="pt"):
                pass  # the library checks lengths, offsets and gaps
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header: dict[str, Any] = json.loads(file.read(size))
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read as safetensors: {error}; copy it again") from error
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        self._start = 8 + size
        self._offsets = {name: each["data_offsets"] for name, each in header.items()}
        self.entries = {name: Entry(each["dtype"], tuple(each["shape"])) for name, each in header.items()}

    def get(self, name: str) -> Tensor:
        """Return one tensor in memory of its own."""
        entry = self.entries[name]
        if entry.dtype not in KEPT_DTYPES:
            raise CheckpointError(f"{self.path}: {name} has dtype {entry.dtype}, which is not read")
        first, last = self._offsets[name]
        tensor = torch.empty(entry.shape, dtype=KEPT_DTYPES[entry.dtype], device="cpu")
        if tensor.numel():
            with self.path.open("rb") as file:
                file.seek(self._start + first)
                if file.readinto(raw(tensor)) != last - first:
                    raise CheckpointError(f"{self.path} ends inside {name}; copy it again")
        return tensor


def write_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file of tensors that are in memory already.

    Args:
        tensors: contiguous ones on the CPU, no two of which share memory.
        path: the file.
        metadata: its notes.

    Raises:
        OSError: it cannot be written, as on a full disk; the library has an error of its own for that.
    """
    path.unlink(missing_ok=True)
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
        path.chmod(mode)  # the library lets nobody but the owner read, whatever the umask says
    except SafetensorError as error:
        path.unlink(missing_ok=True)
        raise OSError(f"{path.name}: {error}") from error


def raw(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor on the CPU, sharing its memory."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


class TensorWriter:
    """Write a safetensors file whose content is known beforehand, a tensor at a time, in any order.

    Use it in a `with` block; leaving that normally checks that everything was written and syncs the file.

    Args:
        path: the file.
        entries: what it will hold.
        metadata: its notes.
    """

    def __init__(self, path: Path, entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> None:
        # Wide dtypes first, as the library does: each tensor then begins at a multiple of its item size.
        ordered = sorted(entries.items(), key=lambda pair: -DTYPES[pair[1].dtype].itemsize)
        header: dict[str, Any] = {"__metadata__": dict(metadata)}
        position = 0
        for name, entry in ordered:
            offsets = [position, position + entry.num_bytes]
            header[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
            position = offsets[1]
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._header, self._entries, self._missing = header, dict(entries), set(entries)
        self._start = 8 + len(text)
        self._file: BinaryIO = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, tensor: Tensor) -> None:
        """Write one tensor's data."""
        assert entry_of(tensor) == self._entries[name], (name, entry_of(tensor), self._entries[name])
        self._file.seek(self._start + self._header[name]["data_offsets"][0])
        if tensor.numel():
            self._file.write(raw(tensor.detach().cpu().contiguous()))
        self._missing.discard(name)

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                assert not self._missing, f"not written: {sorted(self._missing)}"
                self._file.flush()
                os.fsync(self._file.fileno())


def shard(entries: Mapping[str, Entry], limit: int) -> list[dict[str, Entry]]:
    """Divide tensors, in order, into files of at most `limit` bytes each (a larger one stands alone)."""
    shards: list[dict[str, Entry]] = [{}]
    size = 0
    for name, entry in entries.items():
        if size and size + entry.num_bytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = entry
        size += entry.num_bytes
    return shards


def shard_names(number: int) -> Iterable[str]:
    """Return the names of `number` files, as transformers calls them."""
    if number == 1:
        return ["model.safetensors"]
    return [f"model-{index:05}-of-{number:05}.safetensors" for index in range(1, number + 1)]
