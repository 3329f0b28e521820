"""Read what frozen encoders answered once, so that a stage need not run them.

`janus-plugins precompute` writes, for each data entry, `DIR/NAME/key.json` (what the answers were made with),
`DIR/NAME/PATH/part-N.parquet` (a row an item) and, when everything is there, `DIR/NAME/complete.json`.
Whether the answers still belong to the encoder is checked in `training/precompute.py`, which sees weights.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path as File
from typing import Any

import numpy as np

from janus_plugins.core.errors import BadSample, DataError, RunFileError
from janus_plugins.core.plan import DataPlan, Part, RunPlan, plain_options
from janus_plugins.core.schema import StageBlock
from janus_plugins.data.mixture import stage_sources
from janus_plugins.sequence.line import Path

FORMAT = 2
OPEN_PARTS = 32

Address = tuple[Path, str]
"""A path of the model: ("generation", "image")."""


@dataclass(frozen=True)
class Description:
    """Say what the answers for one data entry were made with; the content of key.json.

    Attributes:
        source: digest of the entry's component and options.
        size: samples of the entry.
        chunk: samples of one part file.
        encoders: "generation.image" -> digest of its encoder: weights, options, processor, precision.
    """

    source: str
    size: int
    chunk: int
    encoders: dict[str, str]
    format: int = FORMAT

    def text(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self), indent=1)


@dataclass(frozen=True)
class Store:
    """Hold the answers of one encoder for the items of one data entry. Picklable.

    Attributes:
        folder: of its part files.
        chunk: samples of one part file.
        size: samples of the entry when the answers were made.
        encoder: digest of the encoder that gave the answers.
        codes: number of distinct codes; None for latents and features.
    """

    folder: str
    chunk: int
    size: int
    encoder: str
    codes: int | None = None

    def get(self, index: int, item: int, key: str, value: object) -> np.ndarray:
        """Return codes [T] or [T, Q] (int64), latents or features [T, C] (float32) of one item.

        Args:
            index: the sample's index in its source.
            item: the item's number in the sample.
            key: the sample's name, which must be the one that was written.
            value: the raw item, which must be the one that was answered (see `item_digest`).

        Raises:
            BadSample: the item could not be read when the answers were made.
            DataError: another sample or item stands at this index now, or the file is damaged.
        """
        again = "run `janus-plugins precompute` again into another --out"
        if index >= self.size:
            raise DataError(
                f"{self.folder} was made of {self.size:,} samples; {key!r} is one more (number {index}): "
                f"{again}"
            )
        path = str(part_file(File(self.folder), index // self.chunk))
        part = _open_part(path, os.getpid())
        place = part.places.get((index, item))
        if place is None:
            raise BadSample(f"{key}: item {item} could not be read when {self.folder} was made")
        group, row, written, digest = place
        if written != key:
            raise DataError(
                f"{self.folder} was made when sample {index} was {written!r}; it is {key!r} now: {again}"
            )
        if digest != item_digest(value):
            raise DataError(
                f"{self.folder} was made when item {item} of sample {key!r} was another one (rows were put "
                f"in another order, or replaced): {again}"
            )
        with _reading(path):
            return _answer(part.file, group, row, self.codes)


def part_file(folder: File, number: int) -> File:
    """Return the file of a chunk of samples."""
    return folder / f"part-{number:06}.parquet"


def source_digest(data: DataPlan) -> str:
    """Return a sha256 of which component reads a data entry, and with which options."""
    part = data.part
    return digest_of([part.owner.distribution, part.spec.name, options_of(part), data.block.split])


def options_of(part: Part) -> Any:
    """Return what tells a part's options from others, as plain data."""
    return plain_options(part.config) or (repr(part.config) if type(part.config).model_fields else {})


def item_digest(value: object) -> str:
    """Return what tells a raw item from another: of a file its name, of numbers, bytes and pictures all.

    Empty for objects of which nothing is known.
    """
    digest = hashlib.blake2b(digest_size=12)
    return digest.hexdigest() if _take(digest, value) else ""


def _take(digest: Any, value: object) -> bool:
    """Add a raw item to a digest; False if it is of an unknown kind."""
    if isinstance(value, Mapping):
        if isinstance(value.get("bytes"), bytes):  # as `datasets` gives a file, which may lie anywhere
            return _take(digest, value["bytes"])
        return all(_take(digest, str(key)) and _take(digest, each) for key, each in sorted(value.items()))
    if isinstance(value, list | tuple):
        digest.update(f"{len(value)} items".encode())
        return all(_take(digest, each) for each in value)
    if isinstance(value, str | int | float | complex | File | None):
        digest.update(f"{type(value).__name__} {value}".encode())
        return True
    if isinstance(value, bytes | bytearray | memoryview):
        digest.update(value)
        return True
    if not hasattr(value, "__array_interface__"):  # arrays, and pictures of PIL
        return False
    array = np.asarray(value)
    if array.dtype.hasobject:
        return False
    digest.update(f"{array.dtype}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
    if getattr(value, "palette", None) is not None:  # a picture whose numbers are places in its palette
        picture: Any = value
        digest.update(f"{picture.getpalette()} {picture.info.get('transparency')}".encode())
    return True


def digest_of(plain: Any) -> str:
    """Return a sha256 of plain data."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def read_description(folder: File) -> Description:
    """Read what a data entry's answers were made with.

    Raises:
        DataError: there is none, it is damaged or of another format, or the writing was broken off.
    """
    again = "run `janus-plugins precompute` (again: it goes on where it stopped)"
    try:
        found = Description(**json.loads((folder / "key.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise DataError(f"{folder} holds nothing precomputed; {again}, or remove 'precomputed'") from None
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{folder / 'key.json'} is damaged: {error}; remove {folder} and {again}") from error
    if found.format != FORMAT:
        raise DataError(f"{folder} has format {found.format}; this version reads {FORMAT}: {again}")
    if not (folder / "complete.json").is_file():
        raise DataError(f"{folder} is not complete; {again}")
    return found


def open_stores(plan: RunPlan, stage: StageBlock) -> dict[tuple[str, Path, str], Store]:
    """Open the answers that a stage reads instead of running encoders: by (data entry, path, modality).

    An encoder that learns in the stage is run, whatever lies on the disk; so is one that reconstructs.

    Raises:
        DataError: what is there is incomplete, or of another source.
        RunFileError: of the entries that a stage draws a path's items from, some have answers and some not.
    """
    stores: dict[tuple[str, Path, str], Store] = {}
    if stage.reconstruct is not None:
        return stores
    entries = {name: plan.data[name] for name in stage_sources(plan, stage)}
    for name, data in entries.items():
        if data.block.precomputed is None:
            continue
        folder = File(data.block.precomputed) / name
        found = read_description(folder)
        if found.source != source_digest(data):
            raise DataError(
                f"{folder} was made of another source than data.{name} is now (component, options or split); "
                "run `janus-plugins precompute` again into another --out"
            )
        for path, modality in frozen_paths(plan, [stage]):
            address = f"{path}.{modality}"
            if address in found.encoders:
                stores[name, path, modality] = Store(
                    str(folder / address),
                    found.chunk,
                    found.size,
                    found.encoders[address],
                    plan.model.generation[modality].facts.codebook_size if path == "generation" else None,
                )
    _refuse_halves(entries, stores, stage)
    return stores


def frozen_paths(plan: RunPlan, stages: Iterable[StageBlock]) -> list[Address]:
    """Return the paths whose encoder can be replaced by its answers, frozen as it is in one of the stages.

    Left out are encoders without a fixed number of tokens, and those that are shared by two paths.
    """
    found: dict[Address, Part] = {}
    for name, shown in plan.model.understanding.items():
        if shown.facts.tokens is not None and shown.shares is None:
            found["understanding", name] = shown.encoder
    for name, made in plan.model.generation.items():
        found["generation", name] = made.encoder
    running = [stage for stage in stages if stage.reconstruct is None]
    return [at for at, part in found.items() if any(not _learns(stage, part) for stage in running)]


def _learns(stage: StageBlock, part: Part) -> bool:
    patterns = [*stage.learn, *(stage.lora or ())]
    return any(
        f"{part.address}.".startswith(f"{one}.") or one.startswith(part.address + ".") for one in patterns
    )


def _refuse_halves(
    entries: dict[str, DataPlan], stores: dict[tuple[str, Path, str], Store], stage: StageBlock
) -> None:
    """Refuse a path of which a batch could hold both answers and raw items."""
    for path, modality in {at[1:] for at in stores}:
        for name, data in entries.items():
            kinds = data.facts.generation if path == "generation" else data.facts.understanding
            if modality in kinds and (name, path, modality) not in stores:
                having = sorted(at[0] for at in stores if at[1:] == (path, modality))
                raise RunFileError(
                    f"stages.{stage.name} draws items of {path}.{modality} from data.{name}, which has "
                    f"nothing precomputed for it, and from data.{having[0]}, which has; precompute both or "
                    "neither"
                )


@dataclass(frozen=True)
class _Part:
    """Hold an open part file, and where each item lies: row group, row, the sample's key, the digest."""

    file: Any
    places: dict[tuple[int, int], tuple[int, int, str, str]]


@lru_cache(maxsize=OPEN_PARTS)
def _open_part(path: str, process: int) -> _Part:
    """Open a part file; each process its own, since a forked one shares the file's position."""
    from pyarrow.parquet import ParquetFile

    with _reading(path):
        file = ParquetFile(path, page_checksum_verification=True)  # which older files do not have
        places: dict[tuple[int, int], tuple[int, int, str, str]] = {}
        columns = ["index", "item", "key", "digest"]
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group, columns=columns, use_threads=False)
            for row, one in enumerate(rows.to_pylist()):
                places[one["index"], one["item"]] = (group, row, one["key"], one["digest"])
    return _Part(file, places)


def _answer(file: Any, group: int, row: int, codes: int | None) -> np.ndarray:
    """Return the codes, latents or features of one row of an open part file.

    Raises:
        ValueError: there are no such codes.
    """
    table = file.read_row_group(group, columns=["values", "shape"], use_threads=False)
    values = table["values"][row].values.to_numpy(zero_copy_only=False)
    whole = np.issubdtype(values.dtype, np.integer)
    if codes is not None and not (whole and values.min() >= 0 and values.max() < codes):
        raise ValueError(f"it holds others than the codes 0 to {codes - 1}")
    return np.array(values, dtype=np.int64 if whole else np.float32).reshape(table["shape"][row].as_py())


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Name the part file that cannot be read.

    Raises:
        DataError: whatever went wrong.
    """
    try:
        yield
    except Exception as error:  # Arrow raises of a damaged file what the bytes make it believe
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}: {error}); remove it, and complete.json of the "
            "folder above, and run `janus-plugins precompute` again: it writes what is missing"
        ) from error
