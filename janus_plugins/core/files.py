"""Files that a sample names or holds, looked at before they are read. For processors of every component."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from janus_plugins.core.errors import BadSample

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class RawFile:
    """Hold a file by its path, or its bytes.

    Attributes:
        name: for messages.
        path: where it lies, or None.
        data: its bytes where it has no path.
    """

    name: str
    path: Path | None
    data: bytes = b""

    @property
    def size(self) -> int:
        """Return its size in bytes."""
        return self.path.stat().st_size if self.path else len(self.data)

    @property
    def suffix(self) -> str:
        """Return the ending of its name in lower case, dot included."""
        return Path(self.name).suffix.lower()

    def open(self) -> BinaryIO:
        """Open it for reading."""
        return self.path.open("rb") if self.path else io.BytesIO(self.data)

    def head(self, count: int) -> bytes:
        """Return its first bytes."""
        with self.open() as file:
            return file.read(count)

    @contextmanager
    def as_path(self, suffix: str) -> Iterator[Path]:
        """Give a path to it, for libraries that read nothing else; bytes are written to a temporary file."""
        if self.path:
            yield self.path
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"item{suffix}"
            path.write_bytes(self.data)
            yield path


class NamedBytes(bytes):
    """Be the bytes of a file that had a name: its ending may be all that tells the format."""

    name: str

    def __new__(cls, data: bytes, name: str) -> NamedBytes:
        """Keep a name beside bytes."""
        made = super().__new__(cls, data)
        made.name = name
        return made

    def __reduce__(self) -> tuple[type[NamedBytes], tuple[bytes, str]]:
        """Keep it when pickled."""
        return NamedBytes, (bytes(self), self.name)


def raw_file(value: object, what: str, max_bytes: int) -> RawFile | None:
    """Return the file that a value names: a path, bytes, or {"bytes", "path"} of datasets; None for others.

    Args:
        value: a sample's raw item.
        what: "a recording", "a point cloud"; for messages.
        max_bytes: largest file that is read.

    Raises:
        BadSample: there is no such file, it is empty or too large.
    """
    if isinstance(value, Mapping):
        data, path = value.get("bytes"), value.get("path")
        name = str(path or f"{what} given as bytes")
        value = RawFile(name, None, bytes(data)) if data else path
    if isinstance(value, (bytes, bytearray, memoryview)):
        value = RawFile(getattr(value, "name", f"{what} given as bytes"), None, bytes(value))
    elif isinstance(value, (str, Path)):
        path = Path(value).expanduser()
        if not path.is_file():
            raise BadSample(f"{value}: there is no such file")
        value = RawFile(str(value), path)
    if not isinstance(value, RawFile):
        return None
    if not 0 < value.size <= max_bytes:
        raise BadSample(f"{value.name}: {value.size:,} bytes; 1 to {max_bytes:,} are read")
    return value


def is_array(value: object) -> bool:
    """Answer whether an item is an array, or lists, as JSON and columns of `datasets` hold one."""
    return hasattr(value, "__array__") or (isinstance(value, list) and bool(value))


def as_array(value: Any, what: str) -> np.ndarray:
    """Return an array of what `is_array`.

    Raises:
        BadSample: it makes none, such as lists of different lengths, or a tensor of a kind unknown to numpy.
    """
    import numpy as np

    try:
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise BadSample(f"{what} that is no array of numbers ({error})") from error


def read_npy(file: RawFile, max_values: int) -> np.ndarray:
    """Return the array of numbers in a .npy file; its header is checked before anything is read.

    Raises:
        BadSample: it is none, holds Python objects, claims more than it has, or more than `max_values`.
    """
    import math

    import numpy as np
    from numpy.lib import format as npy

    try:
        with file.open() as opened:
            read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
            shape, _, dtype = read[npy.read_magic(opened)](opened)
            start = opened.tell()
    except Exception as error:  # foreign bytes
        raise BadSample(f"{file.name}: is no .npy file ({type(error).__name__}: {error})") from error
    count = math.prod(shape)
    if dtype.kind not in "iuf":
        raise BadSample(f"{file.name}: holds {dtype}, not numbers")
    if count > max_values:
        raise BadSample(f"{file.name}: claims {count:,} values; at most {max_values:,} are read")
    if start + count * dtype.itemsize > file.size:
        raise BadSample(f"{file.name}: claims {shape} of {dtype}, but ends before")
    with file.open() as opened:
        return np.asarray(npy.read_array(opened, allow_pickle=False))
