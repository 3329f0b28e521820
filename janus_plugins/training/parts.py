"""One part file of precomputed answers: items processed, encoded in batches, written as Parquet at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from janus_plugins.core.answered import codes_of
from janus_plugins.core.errors import BadSample, CheckpointError, JanusPluginsError
from janus_plugins.core.plan import GenerationPlan, UnderstandingPlan
from janus_plugins.core.samples import Item
from janus_plugins.data.precomputed import Address, item_digest
from janus_plugins.inference.halves import widened
from janus_plugins.model.checked import features_of
from janus_plugins.sequence.assemble import collate_items, finite
from janus_plugins.training.publish import sync

GROUP_BYTES = 2**20
"""What is decoded to read one item."""


@dataclass
class Encoder:
    """Hold an encoder ready to answer, in evaluation mode on its device, and the digest of what it is."""

    address: Address
    plan: UnderstandingPlan | GenerationPlan
    module: nn.Module
    processor: Any
    key: str
    device: torch.device

    @torch.no_grad()
    def answer(self, arrays: Sequence[Any]) -> list[np.ndarray]:
        """Return codes [T] or [T, Q] (int32), latents or features [T, C] (float32) of processed items.

        Raises:
            PluginError: the encoder failed, or answered something else than its facts say.
        """
        items = {name: value.to(self.device) for name, value in collate_items(list(arrays)).items()}
        with widened(self.module):
            if isinstance(self.plan, GenerationPlan):
                made = codes_of(self.plan, self.module, items, wait=True)
            else:
                entering = [self.processor.num_tokens(one) for one in arrays]
                made = features_of(self.plan, self.module, items, entering)
        kind = torch.float32 if made.is_floating_point() else torch.int32
        return list(made.to("cpu", kind).numpy())


@dataclass
class Rows:
    """Collect the rows of one part file of one path."""

    encoder: Encoder
    batch: int
    names: list[tuple[int, int, str, str]] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)
    waiting: list[Any] = field(default_factory=list)

    def add(self, index: int, item: int, key: str, digest: str, arrays: Any) -> None:
        """Take one processed item; encode when a batch is full."""
        self.names.append((index, item, key, digest))
        self.waiting.append(arrays)
        if len(self.waiting) == self.batch:
            self.flush()

    def flush(self) -> None:
        """Encode what is waiting."""
        if self.waiting:
            self.values += self.encoder.answer(self.waiting)
            self.waiting.clear()


def fill(rows: dict[Address, Rows], source: Any, indices: range, name: str) -> Iterator[str]:
    """Process and answer a chunk's items; yield the samples that cannot be read."""
    for index in indices:
        try:
            sample = source[index]
            parts = [part for turn in sample.turns for part in turn.parts if isinstance(part, Item)]
            ready = [
                (at, item, item_digest(part.value), finite(rows[at].encoder.processor(part.value)))
                for item, part in enumerate(parts)
                if (at := _address(part)) in rows
            ]
        except BadSample as error:
            yield f"{name}[{index}]: {error}"
            continue
        except JanusPluginsError:
            raise
        except Exception as error:  # one sample must never end a run, here as in training
            yield f"{name}[{index}]: {type(error).__name__}: {error}"
            continue
        for at, item, digest, arrays in ready:
            rows[at].add(index, item, sample.key, digest, arrays)


def _address(item: Item) -> Address:
    return ("generation" if item.learn else "understanding", item.modality)


def write_part(target: Path, rows: Rows) -> None:
    """Write a part file at once or not at all: a row an item, as many together as one read should decode.

    Parquet's checksum of each page goes with it: flipped bits would else be read as other codes.

    Raises:
        CheckpointError: the disk is full or read-only.
    """
    import pyarrow as pa
    from pyarrow.parquet import write_table

    whole = bool(rows.values) and np.issubdtype(rows.values[0].dtype, np.integer)
    kind = pa.int32() if whole else pa.float32()
    table = pa.table(
        {
            "index": pa.array([name[0] for name in rows.names], pa.int64()),
            "item": pa.array([name[1] for name in rows.names], pa.int32()),
            "key": pa.array([name[2] for name in rows.names], pa.string()),
            "digest": pa.array([name[3] for name in rows.names], pa.string()),
            "shape": pa.array([list(value.shape) for value in rows.values], pa.list_(pa.int32())),
            "values": pa.array([value.reshape(-1) for value in rows.values], pa.list_(kind)),
        }
    )
    size = max((value.nbytes for value in rows.values), default=1)
    with _whole(target) as partial:
        write_table(table, partial, row_group_size=max(1, GROUP_BYTES // size), write_page_checksum=True)


def put(file: Path, text: str) -> None:
    """Write a text file at once or not at all.

    Raises:
        CheckpointError: the disk is full or read-only.
    """
    with _whole(file) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """Give a file's name while it is written; it gets its own name when it is whole and on the disk."""
    partial = target.with_suffix(".tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        sync(partial)
        partial.rename(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(
            f"{target} could not be written: {error}; make room and run the same command again: it goes on "
            "where it stopped"
        ) from error
