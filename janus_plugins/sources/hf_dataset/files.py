"""Which builder of the `datasets` library reads which files, so that a text stays as its file spells it.

The json and csv builders infer a column's type from all of its cells: `3` beside `3.5` becomes "3.0",
`00501` becomes "501", `NA` an empty cell and `2024-01-01` a date. Local files are therefore read another
way: JSON lines as lines, each parsed when it is read, and every cell of a CSV as text.
"""

from __future__ import annotations

import codecs
import glob
from collections.abc import Iterator, Mapping
from datetime import date, time
from itertools import islice
from pathlib import Path
from typing import Any

from janus_plugins.core.errors import BadSample, DataError
from janus_plugins.sources.hf_dataset.rows import LINE, parsed
from janus_plugins.sources.hf_dataset.spec import COLUMN, TEXT_KEYS, HfDatasetConfig

BUILDERS = {
    ".parquet": "parquet",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".arrow": "arrow",
    ".txt": "text",
}
"""Which builder reads a single local file."""

INFERRED = frozenset({"json", "csv", "imagefolder", "audiofolder", "videofolder"})
"""Builders that guess the types of columns."""

_MOST_WITHOUT_ROWS = 2**20
"""Bytes that a Parquet file without rows stays below; thousands of larger ones are not opened to know."""

_FIRST = 1000
"""How many lines are looked at for a column before it counts as unknown."""


def load(config: HfDatasetConfig) -> tuple[Any, bool]:
    """Open what `path` names: a file, a folder, a builder or a hub id.

    Returns:
        a `datasets.Dataset` or `IterableDataset`, and whether its rows are lines of JSON still to be
        parsed; those of a `Dataset` are never blank.

    Raises:
        DataError: there are no files, all of them are empty, or a column of a text has a guessed type
            that does not keep how it was written.
    """
    import datasets

    options = _options(config)
    builder = datasets.load_dataset_builder(**options)
    kind, lines, declared = builder.info.builder_name, False, False
    if kind == "parquet":
        builder = _with_rows(builder, options, config)
    local = _local_files(builder)
    files = local if kind in ("json", "csv", "text") else []
    if files and not any(file.stat().st_size for file in files):
        raise DataError(f"dataset {config.path!r} is empty: {files[0]} holds nothing")
    if kind in INFERRED:
        declared = _declares(builder, options, local)
        builder, lines = (builder, False) if declared else _unguessed(builder, files, options, config)
    dataset = _rows_of(builder, config)
    if builder.info.builder_name in INFERRED and not declared:
        _refuse_lossy(dataset, config)
    return (_without_blanks(dataset) if lines and not config.streaming else dataset), lines


def keys_of_lines(dataset: Any, wanted: list[str], config: HfDatasetConfig) -> set[str]:
    """Return the keys of the first lines, no more of them than it takes to find all that are wanted.

    Raises:
        DataError: most of the first lines are no JSON objects, or there are none.
    """
    keys: set[str] = set()
    number, problems = 0, []
    for row in islice((row for row in dataset if row[LINE].strip()), _FIRST):
        number += 1
        try:
            keys |= set(parsed(row))
        except BadSample as error:
            problems.append(error)
        if keys.issuperset(wanted) and not problems:
            break
    if not number:
        raise DataError(
            f"dataset {config.path!r} (split {config.split!r}) is empty: it has no line with text"
        )
    if 2 * len(problems) > number:
        raise DataError(
            f"dataset {config.path!r} is no JSON lines: {problems[0]}; write one object a line, or into a "
            ".json one list of objects"
        )
    return keys


def _rows_of(builder: Any, config: HfDatasetConfig) -> Any:
    if config.streaming:
        streamed = builder.as_streaming_dataset(split=config.split)
        untyped = builder.info.builder_name == "json" and streamed.features is None
        if not (untyped and _local_files(builder)):
            return streamed
    builder.download_and_prepare()
    dataset = builder.as_dataset(split=config.split)
    # A list in a .json is read as a whole in any case, and has types only then.
    return dataset.to_iterable_dataset() if config.streaming else dataset


def _with_rows(builder: Any, options: Mapping[str, Any], config: HfDatasetConfig) -> Any:
    """Leave out Parquet files that end before a row: the builder stops at the first of them."""
    import datasets

    if not _local_files(builder):
        return builder
    files = builder.config.data_files
    kept = {split: [name for name in names if _has_rows(str(name))] for split, names in files.items()}
    if all(len(kept[split]) == len(names) for split, names in files.items()):
        return builder
    kept = {split: names for split, names in kept.items() if names}
    wanted = config.split.partition("[")[0]
    if not kept or (wanted in files and wanted not in kept):
        raise no_rows(config)
    return datasets.load_dataset_builder(**{**options, "data_files": _escaped(kept)})


def _has_rows(file: str) -> bool:
    import pyarrow as pa
    from pyarrow.parquet import read_metadata

    try:
        return Path(file).stat().st_size > _MOST_WITHOUT_ROWS or bool(read_metadata(file).num_rows)
    except (pa.ArrowException, OSError):
        return True  # the builder says what is wrong with it


def no_rows(config: HfDatasetConfig) -> DataError:
    """Return the error of a dataset without any row."""
    return DataError(f"dataset {config.path!r} (split {config.split!r}) is empty: it has no rows")


def _declares(builder: Any, options: Mapping[str, Any], local: list[Path]) -> bool:
    """Answer whether a dataset's card says the types of its columns; a builder may know a guess of before."""
    from datasets.load import dataset_module_factory

    if builder.info.features is None:
        return False
    # The card is the same whichever files are asked for, and finding all of them once more takes minutes.
    files = glob.escape(str(local[0])) if local else options["data_files"]
    module = dataset_module_factory(options["path"], revision=options["revision"], data_files=files)
    said = (module.dataset_infos or {}).get(builder.config.name)
    return said is not None and said.features is not None


def _unguessed(
    builder: Any, files: list[Path], options: Mapping[str, Any], config: HfDatasetConfig
) -> tuple[Any, bool]:
    """Return a builder that guesses nothing, where there is one, and whether its rows are lines of JSON."""
    import datasets

    kind = builder.info.builder_name
    if not files:
        return builder, False
    if kind == "csv":
        names = _drawn(builder.config.data_files, config.split)
        cells = _cells_as_text(builder.config, Path(next(iter(names.values()))[0]))
        return datasets.load_dataset_builder(**{**options, "data_files": _escaped(names)}, **cells), False
    if kind == "json" and all(map(_holds_lines, files)):
        return _lines_of(_escaped(builder.config.data_files)), True
    return builder, False


def _drawn(files: Mapping[str, list[str]], split: str) -> Mapping[str, list[str]]:
    """Return the files of one split by name, which may have other columns than the rest; else all."""
    return {split: files[split]} if split in files else files


def _escaped(files: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Return files that exist as `data_files` that mean just these, whatever signs their names have."""
    return {split: [glob.escape(str(name)) for name in names] for split, names in files.items()}


def _options(config: HfDatasetConfig) -> dict[str, Any]:
    if config.data_files is not None and not config.data_files:
        raise DataError(f"dataset {config.path!r}: data_files names no file")
    path = Path(config.path)
    options: dict[str, Any] = {"path": config.path, "data_files": config.data_files}
    if path.is_file() and path.suffix in BUILDERS:
        options = {"path": BUILDERS[path.suffix], "data_files": glob.escape(config.path)}
    if options["path"] == "csv" and all(name.endswith(".tsv") for name in _names(options["data_files"])):
        options["sep"] = "\t"
    return options | {"name": config.name, "revision": config.revision}


def _local_files(builder: Any) -> list[Path]:
    """Return a builder's files, or none at all where one of them is not on this machine."""
    files = [Path(name) for names in (builder.config.data_files or {}).values() for name in names]
    return files if all(file.is_file() for file in files) else []


def _names(files: Any) -> Iterator[str]:
    """Yield what `data_files` lists."""
    if isinstance(files, str):
        yield files
    elif files:
        for inner in files.values() if isinstance(files, Mapping) else files:
            yield from _names(inner)


def _holds_lines(file: Path) -> bool:
    """Answer whether a file holds JSON lines, rather than one list or something packed."""
    if BUILDERS.get(file.suffix) != "json":
        return False
    with file.open("rb") as opened:
        head = opened.read(len(codecs.BOM_UTF8)).removeprefix(codecs.BOM_UTF8).lstrip()
        while not head and (read := opened.read(1 << 16)):
            head = read.lstrip()
    return not head.startswith(b"[")


def _lines_of(files: Mapping[str, list[str]]) -> Any:
    """Return a builder of lines, which ends one at a line feed alone, as JSON does."""
    import datasets

    return datasets.load_dataset_builder(
        "text",
        data_files=files,
        encoding="utf-8-sig",
        encoding_errors="backslashreplace",  # \x is no JSON, so that a damaged line is refused by itself
    )


def _cells_as_text(config: Any, file: Path) -> dict[str, Any]:
    """Return options of the csv builder that leave every cell as it is; only an empty one is missing."""
    import pandas as pd
    from datasets import Features, Value

    header = pd.read_csv(file, **{**config.pd_read_csv_kwargs, "nrows": 0, "chunksize": None})
    features = Features({str(name): Value("string") for name in header.columns})
    return {"features": features, "keep_default_na": False, "na_values": [""]}


def _without_blanks(dataset: Any) -> Any:
    kept = dataset.filter(_written, input_columns=LINE, batched=True)
    return kept if len(kept) < len(dataset) else dataset  # a selection of rows is read at half the speed


def _refuse_lossy(dataset: Any, config: HfDatasetConfig) -> None:
    names = {name: key for key in TEXT_KEYS for name in COLUMN.findall(config.columns.get(key, ""))}
    features = dataset.features
    first: Mapping[str, Any] = next(iter(dataset), {}) if names and features is None else {}
    for name, key in names.items():
        guessed = _lossy(features.get(name) if features else first.get(name))
        if guessed:
            raise DataError(
                f"dataset {config.path!r}: column {name!r} of columns.{key} was taken for {guessed}, which "
                'does not keep a text as its file has it (3 would become "3.0"); write the rows as JSON '
                "lines into a local file that ends in .jsonl, or make the values texts in quotes"
            )


def _lossy(column: Any) -> str | None:
    """Return the type of a feature, or of a value, whose text is not the file's."""
    import pyarrow as pa

    kind = getattr(column, "pa_type", None)
    if isinstance(column, float | date | time):
        kind = pa.scalar(column).type
    return str(kind) if kind and (pa.types.is_floating(kind) or pa.types.is_temporal(kind)) else None


def _written(lines: list[str]) -> list[bool]:
    return [bool(line.strip()) for line in lines]
