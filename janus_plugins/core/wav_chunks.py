"""A .wav file without its notes: libsndfile refuses one whose tags, labels or loops it cannot parse.

About 64 kB of labels are enough (an editor's marks, bioacoustics), or a kind of list that it does not know.
"""

from __future__ import annotations

import io
import os
import struct
from typing import Any, BinaryIO

_NEEDED = (b"fmt ", b"fact")
_MOST = 4096
"""Longest chunk that says how the samples are kept; a few dozen bytes are usual."""


def without_notes(file: BinaryIO) -> BinaryIO | None:
    """Return a .wav as one of its format and its samples alone, or None where it is none of that kind.

    Args:
        file: opened for reading; what is returned reads from it.
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    if not (file.read(4) == b"RIFF" and file.read(8)[4:] == b"WAVE"):
        return None
    kept = b""
    while len(head := file.read(8)) == 8:
        name, size = struct.unpack("<4sI", head)
        start = file.tell()
        if name == b"data":
            size = min(size, end - start)
            body = b"WAVE" + kept + struct.pack("<4sI", b"data", size)
            return _Joined(struct.pack("<4sI", b"RIFF", min(len(body) + size, 2**32 - 1)) + body, file, size)
        if name in _NEEDED and size <= _MOST:
            kept += head + file.read(size) + b"\0" * (size % 2)
        file.seek(start + size + size % 2)
    return None


class _Joined(io.RawIOBase, BinaryIO):
    """Read a header, then what a file holds from where it stands.

    Args:
        header: what comes first.
        file: stands where its own part begins.
        size: bytes of that part.
    """

    def __init__(self, header: bytes, file: BinaryIO, size: int) -> None:
        self._header, self._file = header, file
        self._start, self._end, self._at = file.tell(), len(header) + size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._end}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        room = memoryview(buffer).cast("B")
        if self._at < len(self._header):
            piece = self._header[self._at : self._at + len(room)]
        else:
            self._file.seek(self._start + self._at - len(self._header))
            piece = self._file.read(min(len(room), max(self._end - self._at, 0)))
        room[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)
