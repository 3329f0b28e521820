"""Datasets of the `datasets` library, read by index or in order.

Items stay undecoded (`decode=False`): opening untrusted files is the processors' part, which guards
against broken and oversized ones. No code from a dataset repository is ever run.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from janus_plugins.core.errors import BadSample, DataError
from janus_plugins.core.facts import SourceFacts
from janus_plugins.core.samples import Sample
from janus_plugins.sources.hf_dataset.files import BUILDERS, keys_of_lines, load, no_rows
from janus_plugins.sources.hf_dataset.rows import LINE, RowReader, row_digest
from janus_plugins.sources.hf_dataset.spec import COLUMN, HfDatasetConfig


def build(config: HfDatasetConfig, facts: SourceFacts) -> IndexedDataset | StreamedDataset:
    """Open a dataset.

    Raises:
        DataError: there is no such dataset, split or column.
    """
    dataset, lines = open_dataset(config)
    reader = RowReader(config, _root(config), _classes(dataset), lines)
    return StreamedDataset(dataset, reader) if config.streaming else IndexedDataset(dataset, reader)


class IndexedDataset:
    """Be a `core.contracts.Source` over a dataset on disk.

    Args:
        dataset: a `datasets.Dataset`.
        reader: turns its rows into samples.
    """

    def __init__(self, dataset: Any, reader: RowReader) -> None:
        self._dataset, self._reader = dataset, reader

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        """Return the sample of one row."""
        return self._reader.sample(self._dataset[index], _key(self._reader, index))

    def texts(self) -> Iterator[str]:
        """Yield the texts of every row that can be read."""
        return _texts(self._dataset, self._reader)


class StreamedDataset:
    """Be a `core.contracts.StreamingSource` over a dataset that is read in order, again and again.

    Args:
        dataset: a `datasets.IterableDataset`; it is never shuffled, since a shuffle buffer loses
            rows when reading is resumed.
        reader: turns its rows into samples.
    """

    def __init__(self, dataset: Any, reader: RowReader) -> None:
        self._dataset, self._reader = dataset, reader

    def rows(self, state: Mapping[str, Any] | None) -> Iterator[tuple[Any, Mapping[str, Any]]]:
        """Yield (row, state after it), starting over at the end; nothing at all where it is empty.

        A state is the place before the row, and the row's digest: the row is read again when reading is
        resumed, so that rows that were removed, put in front or replaced are noticed.

        Raises:
            DataError: another row stands there than when the state was written, or none.
        """
        resumed, expected = state is not None, None
        if state is not None and "digest" in state:  # else written before there were any
            state, expected = state["before"], state["digest"]
        while True:
            # Set even where it is None: the dataset remembers how far an earlier reader of it came.
            self._dataset.load_state_dict(state)
            found = False
            for row in self._dataset:
                if self._reader.lines and not row[LINE].strip():
                    continue
                found, digest, after = True, row_digest(row), self._dataset.state_dict()
                if expected is None:
                    yield row, {"before": state, "digest": digest}
                elif digest != expected:
                    raise self._changed("another row stands")
                state, expected = after, None
            if expected is not None:
                raise self._changed("there is no row")
            if not (found or resumed):
                return
            state, resumed = None, False

    def _changed(self, what: str) -> DataError:
        return DataError(
            f"dataset {self._reader.config.path!r} has changed: {what} where the run had read to when its "
            "position was saved; restore the data, or move the step_* checkpoints away and resume: the stage "
            "then begins anew"
        )

    def sample(self, row: Any, index: int) -> Sample:
        """Return the sample of one row."""
        return self._reader.sample(row, _key(self._reader, index))

    def texts(self) -> Iterator[str]:
        """Yield the texts of every row that can be read."""
        return _texts(self._dataset, self._reader)


def open_dataset(config: HfDatasetConfig) -> tuple[Any, bool]:
    """Open what `path` names: a saved dataset, a local file or folder, a builder, or a hub id.

    Returns:
        the dataset, and whether its rows are lines of JSON still to be parsed.

    Raises:
        DataError: naming the path and the cause.
    """
    path = Path(config.path)
    if path.suffix in BUILDERS and not path.exists():  # no hub id ends so; asking the hub takes half a minute
        raise DataError(f"dataset {config.path!r}: there is no such file (looked in {Path.cwd()})")
    try:
        dataset, lines = _opened(path, config)
        return _checked(dataset, lines, config), lines
    except DataError:
        raise
    except Exception as error:
        if "corresponds to no data" in str(error):  # of `datasets`, where a split has no rows
            raise no_rows(config) from error
        raise DataError(
            f"dataset {config.path!r} (split {config.split!r}) cannot be opened: {_reason(error)}"
        ) from error


def _reason(error: BaseException) -> str:
    """Return what an error says, and what the first of those that led to it says."""
    first = error
    while first.__cause__ is not None:
        first = first.__cause__
    if isinstance(first, StopIteration):
        return "its first file is empty"
    said = [f"{type(one).__name__}: {one}".strip() for one in (error, first)]
    return said[0] if first is error else f"{said[0]} ({said[1]})"


def _opened(path: Path, config: HfDatasetConfig) -> tuple[Any, bool]:
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        return _saved(path, config), False
    return load(config)


def _saved(path: Path, config: HfDatasetConfig) -> Any:
    import datasets

    state = path / "state.json"
    if state.is_file() and not json.loads(state.read_text(encoding="utf-8")).get("_data_files", True):
        raise no_rows(config)  # `datasets` cannot load what it saved then
    saved = datasets.load_from_disk(str(path))
    several = isinstance(saved, datasets.DatasetDict)
    parts = dict(saved) if several else dict.fromkeys(("train", str(saved.split or "train")), saved)
    wanted = datasets.ReadInstruction.from_spec(config.split).to_absolute(
        {name: len(part) for name, part in parts.items()}
    )
    dataset = datasets.concatenate_datasets(
        [_rows(parts[one.splitname], one.from_, one.to) for one in wanted]
    )
    return dataset.to_iterable_dataset() if config.streaming else dataset


def _rows(dataset: Any, first: int | None, end: int | None) -> Any:
    """Return a run of rows; None stands for the first and for the last of all."""
    return dataset.select(range(*slice(first, end).indices(len(dataset))))


def _checked(dataset: Any, lines: bool, config: HfDatasetConfig) -> Any:
    """Keep the columns that are used, where it is known which there are."""
    wanted = list(dict.fromkeys(name for text in config.columns.values() for name in COLUMN.findall(text)))
    if lines:
        _check_columns(keys_of_lines(dataset, wanted, config), wanted, config)
        return dataset
    if dataset.column_names is not None:
        if not dataset.column_names:
            raise no_rows(config)
        _check_columns(dataset.column_names, wanted, config)
        dataset = dataset.select_columns(wanted)
    return _undecoded(dataset)


def _check_columns(known: Collection[str], wanted: list[str], config: HfDatasetConfig) -> None:
    missing = [name for name in wanted if name not in known]
    if missing:
        raise DataError(f"dataset {config.path!r} has no column {missing[0]!r}; it has {sorted(known)}")
    for key, text in config.columns.items():
        if text in known:
            raise DataError(
                f"dataset {config.path!r}: columns.{key} is the constant text {text!r}, and there is a "
                f'column of that name; for its values write {key}: "{{{text}}}"'
            )


def _undecoded(dataset: Any) -> Any:
    for name, feature in (dataset.features or {}).items():
        plain = _plain(feature)
        if plain != feature:
            dataset = dataset.cast_column(name, plain)
    return dataset


def _plain(feature: Any) -> Any:
    """Return a feature whose files stay files, also within lists and structs."""
    if isinstance(feature, Mapping):
        return {name: _plain(part) for name, part in feature.items()}
    if dataclasses.is_dataclass(feature) and not isinstance(feature, type) and hasattr(feature, "feature"):
        return dataclasses.replace(feature, feature=_plain(feature.feature))
    # A column of several types is of type Json, which decoding restores.
    if getattr(feature, "decode", False) is True and type(feature).__name__ != "Json":
        return dataclasses.replace(feature, decode=False)
    return feature


def _classes(dataset: Any) -> dict[str, list[str]]:
    features = dataset.features or {}
    return {name: list(feature.names) for name, feature in features.items() if hasattr(feature, "names")}


def _root(config: HfDatasetConfig) -> Path:
    """Return where relative item paths start: `root`, the dataset's folder, or the first file's."""
    if config.root is not None:
        return Path(config.root)
    files = config.data_files
    while isinstance(files, list | dict):
        files = next(iter(files.values() if isinstance(files, dict) else files), None)
    path = Path(files or config.path)
    return path if path.is_dir() else path.parent


def _key(reader: RowReader, index: int) -> str:
    return f"{reader.config.path}[{index}]"


def _texts(dataset: Any, reader: RowReader) -> Iterator[str]:
    names = [key for key in reader.config.columns if key != reader.config.modality]
    wanted = [name for key in names for name in COLUMN.findall(reader.config.columns[key])]
    if wanted and not reader.lines:
        dataset = dataset.select_columns(list(dict.fromkeys(wanted)))
    for row in dataset if wanted else ():
        try:
            yield from reader.texts(row)
        except BadSample:
            continue  # training will count and name it
