"""Read .pcd files (Point Cloud Library, version 0.7): ascii and binary, x, y, z and packed colours."""

from __future__ import annotations

import math
from typing import BinaryIO

import numpy as np

from janus_plugins.core.errors import BadSample
from janus_plugins.core.files import RawFile

_KINDS = {"F": "f", "I": "i", "U": "u"}
_HEADER = 4096


def read_pcd(file: RawFile, max_points: int) -> np.ndarray:
    """Return points [P, 3], or [P, 6] with colours in [0, 1]; points with NaN are left out.

    Raises:
        BadSample: it is damaged, compressed, or claims more points than it has or than are read.
        ValueError: a header that makes no sense.
    """
    with file.open() as opened:
        header = _header(opened, file.name)
        dtype = _dtype(header)
        count = int(header["POINTS"][0])
        if not 0 < count <= max_points:
            raise BadSample(f"{file.name}: claims {count:,} points; 1 to {max_points:,} are read")
        form = header["DATA"][0].lower()
        if form == "binary":
            rows = _binary(opened, dtype, count, file)
        elif form == "ascii":
            rows = _ascii(opened, dtype, count, file)
        else:
            raise BadSample(f"{file.name}: {form} points; save the file as ascii or binary")
    points = np.stack([rows[axis] for axis in "xyz"], axis=1)
    colours = _colours(rows)
    whole = points if colours is None else np.concatenate([points, colours], axis=1)
    finite: np.ndarray = whole[np.isfinite(points).all(axis=1)]
    return finite


def _header(opened: BinaryIO, name: str) -> dict[str, list[str]]:
    header: dict[str, list[str]] = {}
    while "DATA" not in header:
        line = opened.readline(_HEADER)
        if not line or opened.tell() > _HEADER:
            raise BadSample(f"{name}: the header has no DATA line")
        words = line.decode("ascii").split()
        if words and not words[0].startswith("#"):
            header[words[0]] = words[1:]
    missing = {"FIELDS", "SIZE", "TYPE", "POINTS"} - header.keys()
    if missing or not {"x", "y", "z"} <= set(header["FIELDS"]):
        raise BadSample(f"{name}: the header lacks {', '.join(sorted(missing)) or 'x, y or z'}")
    return header


def _dtype(header: dict[str, list[str]]) -> np.dtype:
    names = header["FIELDS"]
    counts = header.get("COUNT", ["1"] * len(names))
    fields = []
    for place, (name, size, kind, count) in enumerate(
        zip(names, header["SIZE"], header["TYPE"], counts, strict=True)
    ):
        unique = f"_{place}" if name == "_" else name
        shape = () if int(count) == 1 else (int(count),)
        fields.append((unique, f"<{_KINDS[kind]}{int(size)}", shape))
    return np.dtype(fields)


def _binary(opened: BinaryIO, dtype: np.dtype, count: int, file: RawFile) -> np.ndarray:
    if opened.tell() + count * dtype.itemsize > file.size:
        raise BadSample(f"{file.name}: claims {count:,} points of {dtype.itemsize} bytes, but ends before")
    return np.frombuffer(opened.read(count * dtype.itemsize), dtype)


def _ascii(opened: BinaryIO, dtype: np.dtype, count: int, file: RawFile) -> np.ndarray:
    names = dtype.names or ()
    columns = sum(math.prod(dtype[name].shape) for name in names)
    if opened.tell() + 2 * columns * count > file.size + 1:
        raise BadSample(f"{file.name}: claims {count:,} points of {columns} numbers, but ends before")
    table = np.loadtxt(opened, dtype=np.float64, ndmin=2, max_rows=count)
    if table.shape != (count, columns):
        raise BadSample(f"{file.name}: holds {table.shape}, not the {count:,} x {columns} numbers it claims")
    rows, at = np.zeros(count, dtype), 0
    for name in names:
        width = math.prod(dtype[name].shape)
        part = table[:, at : at + width]
        rows[name] = part if dtype[name].shape else part[:, 0]
        at += width
    return rows


def _colours(rows: np.ndarray) -> np.ndarray | None:
    """Return colours [P, 3] in [0, 1] of a packed field "rgb" or "rgba", or None."""
    name = next((each for each in ("rgb", "rgba") if each in (rows.dtype.names or ())), None)
    if name is None or rows[name].dtype.itemsize != 4 or rows[name].ndim != 1:
        return None
    packed = np.ascontiguousarray(rows[name]).view(np.uint32)
    parts = [(packed >> shift) & 255 for shift in (16, 8, 0)]
    return np.stack(parts, axis=1).astype(np.float32) / 255
