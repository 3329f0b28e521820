"""Points and colours from files and arrays; what a header claims is checked before memory is spent."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from janus_plugins.core.errors import BadSample
from janus_plugins.core.files import RawFile, as_array, is_array, raw_file, read_npy
from janus_plugins.encoders.point_cloud.pcd import read_pcd

MAX_BYTES = 500_000_000
MAX_POINTS = 20_000_000
SUFFIXES = (".ply", ".obj", ".off", ".stl", ".xyz", ".txt", ".pcd", ".npy")
_WHAT = "a point cloud"
_COLOURS = (("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), ("r", "g", "b"))
_CLAIM = re.compile(rb"^element\s+\w+\s+(\d+)", re.MULTILINE)


def read_points(value: object, count: int) -> np.ndarray:
    """Return points [P, 3], or with colours in [0, 1] [P, 6]; float64, or float32 where they are given so.

    Args:
        value: an array or lists [P, 3 or 6], a path, bytes, or {"bytes", "path"} of datasets. Bytes without a
            name are told apart by how they begin. Lines of text (.xyz, .txt) hold numbers between blanks
            or commas: x, y, z, and colours, whole numbers up to 255 or up to 1.
        count: points that are drawn from the faces of a surface.

    Raises:
        BadSample: it cannot be read, claims too much, or holds no finite points.
    """
    name, points = _read(value, count)
    if points.ndim != 2 or points.shape[1] not in (3, 4, 6) or points.dtype.kind not in "iuf":
        raise BadSample(f"{name}: {points.dtype} {points.shape}; numbers [points, 3 or 6] are read")
    if not 1 <= len(points) <= MAX_POINTS:
        raise BadSample(f"{name}: {len(points):,} points; 1 to {MAX_POINTS:,} are read")
    if not np.isfinite(points).all():
        raise BadSample(f"{name}: holds points that are no finite numbers")
    # A fourth column is an intensity (KITTI), which the encoder does not know.
    points = points[:, :3] if points.shape[1] == 4 else points
    # Rounded only around the middle: a small thing in the coordinates of a survey has no room in float32.
    return points if points.dtype == np.float32 else points.astype(np.float64)


def _read(value: object, count: int) -> tuple[str, np.ndarray]:
    if is_array(value):
        return _WHAT, as_array(value, _WHAT)
    file = raw_file(value, _WHAT, MAX_BYTES)
    if file is None:
        raise BadSample(f"{_WHAT} must be an array, a path or bytes, not {type(value).__name__}")
    suffix = _suffix(file)
    try:
        if suffix == ".npy":
            return file.name, read_npy(file, MAX_POINTS * 6)
        if suffix == ".pcd":
            return file.name, read_pcd(file, MAX_POINTS)
        if suffix in (".xyz", ".txt"):
            return file.name, _from_text(file)
        return file.name, _from_trimesh(file, suffix, count)
    except BadSample:
        raise
    except Exception as error:  # decoders of foreign bytes raise nearly anything
        raise BadSample(f"{file.name}: cannot be read as points ({type(error).__name__}: {error})") from error


def _suffix(file: RawFile) -> str:
    """Return the format: by how the file begins, else by its name."""
    head = file.head(256)
    for mark, suffix in ((b"\x93NUMPY", ".npy"), (b"ply", ".ply"), (b"OFF", ".off")):
        if head.startswith(mark):
            return suffix
    if b"VERSION" in head and b"FIELDS" in head:
        return ".pcd"
    if file.suffix not in SUFFIXES:
        raise BadSample(f"{file.name}: is of no known format; {', '.join(SUFFIXES)} are read")
    return file.suffix


def _from_text(file: RawFile) -> np.ndarray:
    """Return the first six numbers of each line, or three where there are fewer; # begins a comment."""
    text = file.head(MAX_BYTES).decode("utf-8-sig").replace(",", " ").splitlines()
    table = np.loadtxt(text[: MAX_POINTS + 1], dtype=np.float64, ndmin=2)
    if table.shape[1] < 6:
        return table[:, :3]
    return np.concatenate([table[:, :3], _scaled(table[:, 3:6])], axis=1)


def _scaled(colours: np.ndarray) -> np.ndarray:
    """Return colours in [0, 1] of whole numbers up to 255, or of numbers that lie there already."""
    whole = colours.max() > 1 and not (colours % 1).any()
    return colours / 255 if whole else colours


def _from_trimesh(file: RawFile, suffix: str, count: int) -> np.ndarray:
    import trimesh

    claims = [int(claim) for claim in _CLAIM.findall(file.head(65_536))] if suffix == ".ply" else []
    if claims and max(claims) > min(MAX_POINTS, file.size):
        raise BadSample(f"{file.name}: claims {max(claims):,} elements in {file.size:,} bytes")
    with file.open() as opened:
        loaded: Any = trimesh.load(opened, file_type=suffix[1:], process=False, skip_materials=True)
    if isinstance(loaded, trimesh.Scene):
        loaded = loaded.to_mesh()
    stored = _stored(loaded.metadata) if suffix == ".ply" and len(loaded.vertices) else None
    if len(getattr(loaded, "faces", ())):
        return _surface(loaded, count, stored)
    points = np.asarray(loaded.vertices)
    if stored is not None:
        return np.concatenate([points, stored], axis=1)
    colours = np.asarray(getattr(loaded, "colors", None) if len(points) else None)
    if colours.ndim != 2 or len(colours) != len(points):
        return points
    return np.concatenate([points, colours[:, :3] / np.float32(255)], axis=1)


def _stored(metadata: Any) -> np.ndarray | None:
    """Return colours [P, 3] of a .ply's vertices, whatever exporters call them, or None.

    trimesh knows one name, keeps the last 8 of 16 bits (LiDAR), and takes numbers with a point for colours
    up to 1.
    """
    vertex = metadata["_ply_raw"]["vertex"]
    known = {name.lower(): name for name in vertex["properties"]}
    names = next((each for each in _COLOURS if set(each) <= set(known)), None)
    if names is None:
        return None
    parts = [np.asarray(vertex["data"][known[name]]).reshape(-1) for name in names]
    colours = np.stack(parts, axis=1).astype(np.float32)
    if any(part.dtype.kind == "f" for part in parts):
        return _scaled(colours)
    deep = all(part.dtype.itemsize == 2 and part.dtype.kind == "u" for part in parts) and colours.max() > 255
    return colours / np.float32(65535 if deep else 255)


def _surface(mesh: Any, count: int, stored: np.ndarray | None) -> np.ndarray:
    """Return points drawn evenly from a mesh's faces, the same ones each time.

    `stored` are colours of its vertices [V, 3] that take the place of trimesh's.
    """
    from trimesh.sample import sample_surface

    if not np.isfinite(mesh.vertices).all() or not mesh.area > 0:
        raise BadSample("a surface without area, or with corners that are no finite numbers")
    points, faces = sample_surface(mesh, count, seed=0)[:2]
    if stored is not None and len(stored) == len(mesh.vertices):
        colours = stored[mesh.faces[faces]].mean(axis=1)
    elif mesh.visual.kind in ("vertex", "face"):
        colours = np.asarray(mesh.visual.face_colors)[faces, :3].astype(np.float32) / 255
    else:
        return np.asarray(points)
    return np.concatenate([np.asarray(points), colours], axis=1)
