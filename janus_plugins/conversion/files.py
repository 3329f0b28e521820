"""The weight files of a foreign checkpoint: which there are, what they hold, one tensor at a time.

Two forms are read: safetensors, and zip-format pickles that hold tensors by name and nothing else. A pickle
is only ever opened with `weights_only` and memory-mapped, so that no code in it runs; anything else is
refused. Mapping takes the bytes of the file as they are, so a zip that packs its entries is refused too.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from janus_plugins.core.errors import CheckpointError
from janus_plugins.model.tensor_file import Entry, TensorFile, entry_of

_SINGLE = ("model.safetensors", "pytorch_model.bin")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_MAPPED_BYTES = 16 * 2**20
"""How much of a mapped pickle may have been read before it is mapped anew."""
_ENCRYPTED = 1
"""The bit of a zip entry's flags that says so."""
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".msgpack", ".h5")


class WeightFile(Protocol):
    """Be one file of tensors by name."""

    @property
    def path(self) -> Path:
        """Return where it is."""
        ...

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Return what it holds."""
        ...

    def get(self, name: str) -> Tensor:
        """Return one tensor in memory of its own."""
        ...


class PickleFile:
    """Read a `torch.save` file of tensors by name, memory-mapped.

    Raises:
        CheckpointError: it is damaged, packed, of the format before torch 1.6, or holds anything but tensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        sizes = self._record_sizes()
        self._tensors, self._touched = self._open(), 0
        if _storage_sizes(self._tensors.values()) != sizes:
            raise CheckpointError(
                f"{path} is damaged: its tensors are not as long as the data that it holds; copy it again"
            )
        self.entries: Mapping[str, Entry] = {name: entry_of(each) for name, each in self._tensors.items()}

    def _record_sizes(self) -> list[int]:
        """Return the bytes of each piece of data, in the order of the file; none may be packed."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                records = archive.infolist()
        except Exception as error:  # as torch.load
            raise self._unreadable(error) from error
        for each in records:
            plain = each.compress_type == zipfile.ZIP_STORED and each.compress_size == each.file_size
            if not plain or each.flag_bits & _ENCRYPTED:
                raise CheckpointError(
                    f"{self.path} is a compressed or encrypted zip ({each.filename}); only one with its "
                    "tensors as they are can be mapped: load it and save it again with torch.save, or as "
                    "safetensors"
                )
        records.sort(key=lambda each: each.header_offset)
        return [each.file_size for each in records if "/data/" in each.filename and each.file_size]

    def _open(self) -> dict[str, Tensor]:
        try:
            loaded = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            reason = str(error).partition("\n")[0]
            raise CheckpointError(
                f"{self.path} is no file of tensors alone, and was not loaded; do not open it by other means "
                f"unless you trust who made it ({_short(reason)})"
            ) from None
        except Exception as error:  # damaged files raise nearly anything
            raise self._unreadable(error) from error
        if not isinstance(loaded, dict):
            raise CheckpointError(f"{self.path} holds a {type(loaded).__name__}, not tensors by name")
        for name, value in loaded.items():
            if not (isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided):
                raise CheckpointError(
                    f"{self.path} holds more than tensors by name: {name!r} is a {type(value).__name__}"
                )
            if value.device.type != "cpu":
                raise CheckpointError(
                    f"{self.path}: {name} was saved on the {value.device.type} device and has no data; save "
                    "the model again when its weights are loaded"
                )
        return loaded

    def _unreadable(self, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"{self.path} cannot be read: {type(error).__name__}: {_short(str(error))}; it is truncated, "
            "damaged, or older than torch 1.6; copy it again or save it as safetensors"
        )

    def get(self, name: str) -> Tensor:
        """Return one tensor in memory of its own."""
        self._touched += self.entries[name].num_bytes
        if self._touched > _MAPPED_BYTES:
            # Pages that were read stay in memory as long as the file is mapped.
            self._tensors, self._touched = self._open(), 0
        return self._tensors[name].detach().clone(memory_format=torch.contiguous_format)


class TensorFiles:
    """Read the tensors of several files as one.

    Attributes:
        entries: what they hold, by name, in the order of the files.

    Raises:
        CheckpointError: a file is missing or damaged, or an index and its files disagree.
    """

    def __init__(self, files: Sequence[WeightFile]) -> None:
        self._owner: dict[str, WeightFile] = {}
        self.entries: dict[str, Entry] = {}
        for file in files:
            for name, entry in file.entries.items():
                if name in self._owner:
                    raise CheckpointError(f"{name} is in {self._owner[name].path} and again in {file.path}")
                self._owner[name], self.entries[name] = file, entry

    def get(self, name: str) -> Tensor:
        """Return one tensor."""
        return self._owner[name].get(name)


def open_weights(folder: Path) -> TensorFiles:
    """Open the weight files of a folder: safetensors before pickles, a single file before shards.

    Raises:
        CheckpointError: there are none of the two forms, one is missing or damaged, or the index is wrong.
    """
    for single, index in zip(_SINGLE, _INDEXES, strict=True):
        if (folder / single).is_file():
            return TensorFiles([_open(folder / single)])
        if (folder / index).is_file():
            return _sharded(folder / index)
    others = sorted(path.name for path in folder.iterdir() if path.suffix in _WEIGHTS)
    found = f"only {', '.join(others[:5])}" if others else "no weights"
    raise CheckpointError(
        f"{folder} holds {found}; {' or '.join(_SINGLE)}, or their .index.json with every shard, is needed"
    )


def _open(path: Path) -> WeightFile:
    return TensorFile(path) if path.suffix == ".safetensors" else PickleFile(path)


def _sharded(index: Path) -> TensorFiles:
    """Open what an index lists, and hold the two against one another."""
    listed = _read_index(index)
    names = sorted(set(listed.values()))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{index.parent}: {len(missing)} of {len(names)} shards are missing: {', '.join(missing)}"
        )
    files = [_open(index.parent / name) for name in names]
    found = {name: file.path.name for file in files for name in file.entries}
    wrong = sorted(name for name in listed.keys() | found.keys() if listed.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"{index} and its shards disagree about {len(wrong)} tensors, the first being {name}: the index "
            f"puts it in {listed.get(name, 'no file')}, it is in {found.get(name, 'no file')}"
        )
    return TensorFiles(files)


def _read_index(index: Path) -> dict[str, str]:
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        pairs = {str(name): str(file) for name, file in listed.items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} cannot be read as an index of weights: {error}") from error
    for name in pairs.values():
        if Path(name).name != name or Path(name).suffix not in (".safetensors", ".bin"):
            raise CheckpointError(f"{index} names {name!r}, which is no weight file beside it")
    return pairs


def _storage_sizes(tensors: Iterable[Tensor]) -> list[int]:
    """Return the bytes of the memory that tensors lie in, in its own order; empty ones have none."""
    storages = {(each.data_ptr(), each.nbytes()) for each in map(Tensor.untyped_storage, tensors)}
    return [size for _, size in sorted(storages) if size]


def _short(text: str, limit: int = 200) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[:limit]}…"
