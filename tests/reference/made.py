"""Parquet files in the formats of the paper's data sets, made up: one folder for each entry of a run file.

Which columns a folder needs is read from the entry; their types are those of the published copies: pictures
as {bytes, path} in several sizes, modes and file formats, conversations as {from, value} in ShareGPT's
spelling, and interleaved documents with `<image>` where each of several pictures stands.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from janus_plugins.core.schema import DataBlock
from janus_plugins.sources.hf_dataset.spec import COLUMN

KINDS = (
    ((640, 427), "RGB", "JPEG"),
    ((300, 500), "RGB", "WEBP"),
    ((384, 384), "L", "JPEG"),
    ((90, 60), "RGBA", "PNG"),
    ((500, 375), "P", "PNG"),
)
"""Size, mode and file format of the pictures, in turn."""

WORDS = ("house", "boat", "tree", "dog", "red", "old", "quiet", "wooden", "near", "under", "behind", "stands")


def write_all(data: Mapping[str, DataBlock], folder: Path, rows: int = 4) -> None:
    """Write a Parquet file of `rows` rows for every entry of a run file, below `folder`."""
    for number, (name, block) in enumerate(sorted(data.items())):
        target = folder / block.options["path"]
        target.mkdir(parents=True, exist_ok=True)
        draw = np.random.default_rng(number)
        made = [row(block.options["columns"], draw, number + index) for index in range(rows)]
        pq.write_table(pa.Table.from_pylist(made), target / f"{name}-train-00000.parquet")


def row(columns: Mapping[str, str], draw: np.random.Generator, number: int) -> dict[str, Any]:
    """Return one row: a value for every column that `columns` names."""
    many = "text" in columns and "image" in columns
    values: dict[str, Any] = {}
    for key, text in columns.items():
        for column in COLUMN.findall(text):
            if key == "image":
                pictures = [picture(draw, number + index) for index in range(2)]
                values[column] = pictures if many else pictures[0]
            elif key == "conversations":
                values[column] = conversation(draw, shown="image" in columns)
            else:
                values[column] = f"<image>{prose(draw)}<image>{prose(draw)}" if many else prose(draw)
    return values


def conversation(draw: np.random.Generator, shown: bool) -> list[dict[str, str]]:
    """Return two questions and their answers, as LLaVA-OneVision spells them."""
    turns = []
    for asked in range(2):
        mark = "<image>\n" if shown and not asked else ""
        turns += [{"from": "human", "value": mark + prose(draw)}, {"from": "gpt", "value": prose(draw)}]
    return turns


def prose(draw: np.random.Generator) -> str:
    """Return two sentences."""
    return " ".join(" ".join(draw.choice(WORDS, 6)).capitalize() + "." for _ in range(2))


def picture(draw: np.random.Generator, number: int) -> dict[str, Any]:
    """Return a picture as the hub's Parquet files hold it."""
    (width, height), mode, form = KINDS[number % len(KINDS)]
    coarse = draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)
    made = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    target = io.BytesIO()
    made.save(target, form)
    return {"bytes": target.getvalue(), "path": f"{number}.{form.lower()}"}
