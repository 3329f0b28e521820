"""Real Parquet, JSON lines, CSV and image folders, by index and in order."""

from __future__ import annotations

import io
import json
import pickle
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from janus_plugins.core.errors import BadSample, DataError
from janus_plugins.core.files import raw_file
from janus_plugins.core.samples import Item, Part, Turn
from janus_plugins.data.sources import open_source
from janus_plugins.door import plan
from janus_plugins.sources.hf_dataset.rows import RowReader, row_digest
from janus_plugins.sources.hf_dataset.source import build
from janus_plugins.sources.hf_dataset.spec import HfDatasetConfig
from tests.tiny import write_tiny

CAPTIONS = {"image": "{image}", "question": "Describe it.", "answer": "{caption}"}
DRAWN = {"prompt": "a {caption} picture", "image": "{image}"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def open_rows(path: Path | str, columns: dict[str, str], **options: Any) -> Any:
    config = HfDatasetConfig(path=str(path), columns=columns, **options)
    return build(config, config.facts())


def png(shade: int) -> bytes:
    target = io.BytesIO()
    Image.new("L", (4, 4), shade).save(target, "PNG")
    return target.getvalue()


def parquet(folder: Path, number: int, files: int = 1) -> Path:
    """Write images and captions as Parquet files with small row groups."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    target = folder / "data"
    target.mkdir()
    for file in range(files):
        numbers = range(file * number, (file + 1) * number)
        images = [{"bytes": png(index), "path": f"{index}.png"} for index in numbers]
        table = pa.table({"image": images, "caption": [f"c{index}" for index in numbers]})
        pq.write_table(table, target / f"train-{file:05d}.parquet", row_group_size=3)
    return target


def test_parquet_by_index(tmp_path: Path) -> None:
    source = open_rows(parquet(tmp_path, 5), CAPTIONS)
    assert len(source) == 5
    sample = source[3]
    assert sample.turns[0].parts[1] == "Describe it."
    assert sample.turns[1] == Turn("assistant", ("c3",))
    assert sample.turns[0].parts[0] == Item("image", png(3))
    assert sample.key == f"{tmp_path / 'data'}[3]"


def test_generation_and_tasks(tmp_path: Path) -> None:
    source = open_rows(parquet(tmp_path, 2) / "train-00000.parquet", DRAWN)
    sample = source[1]
    assert sample.task == "generation"
    assert sample.turns[0].parts == ("a c1 picture",)
    assert sample.turns[1].parts == (Item("image", png(1), learn=True),)
    facts = HfDatasetConfig(path="x", columns=DRAWN).facts()
    assert (facts.tasks, facts.generation, facts.understanding) == ({"generation"}, {"image"}, frozenset())


def test_json_lines_with_paths(tmp_path: Path) -> None:
    lines = [{"image": f"pictures/{index}.png", "caption": f"c{index}"} for index in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = open_rows(tmp_path / "rows.jsonl", CAPTIONS)
    assert source[2].turns[0].parts[0] == Item("image", str(tmp_path / "pictures/2.png"))
    elsewhere = open_rows(tmp_path / "rows.jsonl", CAPTIONS, root="/pictures")
    assert elsewhere[0].turns[0].parts[0] == Item("image", "/pictures/pictures/0.png")


def test_bytes_keep_the_name_that_tells_their_format(tmp_path: Path) -> None:
    from datasets import Dataset

    rows = {"points": [{"bytes": b"1 2 3\n4 5 6\n", "path": "a.xyz"}], "caption": ["c"]}
    Dataset.from_dict(rows).to_parquet(tmp_path / "rows.parquet")
    columns = {"points": "{points}", "answer": "{caption}"}
    item = open_rows(tmp_path / "rows.parquet", columns, modality="points")[0].turns[0].parts[0]
    assert item == Item("points", b"1 2 3\n4 5 6\n")
    for value in (item.value, pickle.loads(pickle.dumps(item.value))):
        file = raw_file(value, "a cloud", 100)
        assert file is not None
        assert (file.name, file.suffix, file.head(5)) == ("a.xyz", ".xyz", b"1 2 3")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["Image", "Audio"])
def test_files_within_a_struct_stay_files(tmp_path: Path, streaming: bool, kind: str) -> None:
    """Processors open them, with their guards; and `datasets` decodes sound by a library of its own."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    feature = {"before": getattr(datasets, kind)(), "each": datasets.List(getattr(datasets, kind)())}
    features = datasets.Features({"touch": feature, "said": datasets.Value("string")})
    one = {"bytes": png(3), "path": "a.png"}
    rows = [{"touch": {"before": one, "each": [one, one]}, "said": "soft"}]
    pq.write_table(pa.Table.from_pylist(rows, schema=features.arrow_schema), tmp_path / "a.parquet")
    columns = {"touch": "{touch}", "answer": "{said}"}
    source = open_rows(tmp_path / "a.parquet", columns, modality="touch", streaming=streaming)
    sample = source.sample(next(source.rows(None))[0], 0) if streaming else source[0]
    item = sample.turns[0].parts[0]
    assert item.value["before"] == png(3)
    assert [each["bytes"] for each in item.value["each"]] == [png(3)] * 2


def test_sound_that_is_decoded_is_not_looked_for_in_its_file(tmp_path: Path) -> None:
    sounds = [{"array": [0.5, 0.25], "sampling_rate": 8000, "path": path} for path in ("gone.wav", None)]
    lines_of(tmp_path, "rows.jsonl", *(json.dumps({"audio": one, "said": "c"}) + "\n" for one in sounds))
    source = open_rows(tmp_path / "rows.jsonl", {"audio": "{audio}", "answer": "{said}"}, modality="audio")
    assert [source[place].turns[0].parts[0].value for place in (0, 1)] == sounds


def test_files_of_an_item_of_several_are_relative_to_the_same_folder(tmp_path: Path) -> None:
    for name in ("a.png", "gel.png"):
        (tmp_path / name).write_bytes(png(1))
    touches: list[Any] = [
        {"image": "a.png", "background": "gel.png", "sensor": "digit" * 1000},
        {
            "image": {"path": "a.png"},
            "background": {"path": "gel.png", "bytes": None},
            "sensor": "digit" * 1000,
        },
    ]
    lines_of(tmp_path, "rows.jsonl", *(json.dumps({"touch": one, "said": "c"}) + "\n" for one in touches))
    source = open_rows(
        tmp_path / "rows.jsonl", {"tactile": "{touch}", "answer": "{said}"}, modality="tactile"
    )
    for place in (0, 1):
        assert source[place].turns[0].parts[0].value == {
            "image": str(tmp_path / "a.png"),
            "background": str(tmp_path / "gel.png"),
            "sensor": "digit" * 1000,
        }


def test_image_folder_with_class_names(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        folder = tmp_path / "animals" / name
        folder.mkdir(parents=True)
        (folder / "0.png").write_bytes(png(7))
    source = open_rows(tmp_path / "animals", {"prompt": "{label}", "image": "{image}"})
    assert [source[index].turns[0].parts for index in range(2)] == [("cat",), ("dog",)]
    assert source[1].turns[1].parts[0].value == str(tmp_path / "animals/dog/0.png")


def test_csv_text_and_its_texts(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("q,a\nhow,so\n,missing\nwhy,because\n")
    source = open_rows(tmp_path / "rows.csv", {"question": "{q}?", "answer": "{a}"})
    assert source[0].turns == (Turn("user", ("how?",)), Turn("assistant", ("so",)))
    with pytest.raises(BadSample, match="column 'q' is empty"):
        source[1]
    assert list(source.texts()) == ["how?", "so", "why?", "because"]


def answers(source: Any) -> list[str]:
    """Read every row, by index or one pass in order: the answer's text, or the error."""
    number = len(source) if hasattr(source, "__len__") else len(list(source._dataset))
    rows = source.rows(None) if hasattr(source, "rows") else None
    said = []
    for index in range(number):
        try:
            sample = source.sample(next(rows)[0], index) if rows else source[index]
            said.append(sample.turns[-1].parts[0])
        except BadSample as error:
            said.append(f"bad: {error}")
    return said


TEXT = {"text": "{a}"}
ODD = ["3", "00501", "3.50", "None", "NA", "null", "nan", "true", "2024-01-01", "1e5", " x"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
@pytest.mark.parametrize("named", ["path", "data_files", "folder"])
def test_cells_stay_as_the_file_has_them(tmp_path: Path, suffix: str, named: str, streaming: bool) -> None:
    (tmp_path / "rows").mkdir()
    file = tmp_path / "rows" / f"train.{suffix}"
    between = {"csv": ",", "tsv": "\t"}[suffix]
    file.write_text(
        "".join(f"{a}{between}{b}\n" for a, b in [("a", "b"), *((cell, "1;2") for cell in ODD), ("", "x")])
    )
    options: dict[str, Any] = {"path": file, "streaming": streaming}
    if named == "data_files":
        options |= {"path": "csv", "data_files": {"train": [str(file)]}}
    elif named == "folder":
        options["path"] = file.parent
    assert answers(open_rows(columns=TEXT, **options)) == [*ODD, "bad: column 'a' is empty"]
    assert answers(open_rows(columns={"text": "{b}"}, **options)) == ["1;2"] * len(ODD) + ["x"]


def lines_of(folder: Path, name: str, *lines: str) -> Path:
    (folder / name).write_bytes("".join(lines).encode())
    return folder / name


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", ["json", "jsonl", "ndjson"])
@pytest.mark.parametrize("named", ["path", "data_files", "folder"])
def test_values_of_json_lines_keep_their_types(
    tmp_path: Path, suffix: str, named: str, streaming: bool
) -> None:
    (tmp_path / "rows").mkdir()
    big = 12345678901234567890123
    values = [3, 3.5, "three", "3", "2024-01-01", big, "00501", "x\u2028y\u0085z\x0b\x1c\x7f", "Zürich"]
    rows = [
        json.dumps({"a": value, "image": index}, ensure_ascii=False) for index, value in enumerate(values)
    ]
    file = lines_of(tmp_path / "rows", f"train.{suffix}", "\ufeff", "\r\n".join(rows), "\r\n")
    options: dict[str, Any] = {"path": file, "streaming": streaming}
    if named == "data_files":
        options |= {"path": "json", "data_files": str(file)}
    elif named == "folder":
        options["path"] = file.parent
    source = open_rows(columns=TEXT, **options)
    assert answers(source) == list(map(str, values))
    assert list(source.texts()) == list(map(str, values))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_broken_line_is_one_bad_sample(tmp_path: Path, streaming: bool) -> None:
    path = tmp_path / "rows.jsonl"
    good = [b'{"a": "one"}', b"", b'{"a": "two"}', b" \t", b'{"a": "three\x0b"}', b'{"a": "\\ud83d\\ude00"}']
    bad = [b'{"a": "\xff"}', b'{"a": "\\ud800"}', b"[1]", b'{"b": 1}', b'{"a": NaN}', b'{"a": "cut \xe4\xbd']
    path.write_bytes(b"\n".join([*good, *bad]))
    source = open_rows(path, TEXT, streaming=streaming)
    rows = source.rows(None) if streaming else None
    said = []
    for index in range(10):
        try:
            said.append((source.sample(next(rows)[0], index) if rows else source[index]).turns[0].parts[0])
        except BadSample as error:
            said.append(str(error))
    assert said[:4] == ["one", "two", "three\x0b", "\U0001f600"]
    assert f"{path}[4] is no JSON object: Invalid" in said[4]
    assert "surrogates not allowed" in said[5]
    assert said[6] == f"{path}[6] is no JSON object, but '[1]'"
    assert said[7] == "the row has no column 'a'; it has ['b']"
    assert said[8] == "column 'a' holds nan, not text"
    assert f"{path}[9] is no JSON object: " in said[9]
    assert list(source.texts()) == said[:4]
    assert streaming or len(source) == 10


def test_lines_of_several_files_and_splits(tmp_path: Path) -> None:
    names = [str(lines_of(tmp_path, f"{a}.jsonl", json.dumps({"a": a}), "\n")) for a in ("x", "y", "z")]
    files = {"train": names[:2], "test": names[2]}
    assert answers(open_rows("json", TEXT, data_files=files)) == ["x", "y"]
    assert answers(open_rows("json", TEXT, data_files=files, split="test")) == ["z"]
    assert answers(open_rows("json", TEXT, data_files=str(tmp_path / "*.jsonl"), split="train[1:]")) == [
        "y",
        "z",
    ]


def test_an_edited_file_is_read_anew(tmp_path: Path) -> None:
    assert answers(open_rows(lines_of(tmp_path, "x.jsonl", '{"a": 1}\n'), TEXT)) == ["1"]
    assert answers(open_rows(lines_of(tmp_path, "x.jsonl", '{"a": 2}\n'), TEXT)) == ["2"]
    assert answers(open_rows(lines_of(tmp_path, "x.csv", "a\n1\n"), TEXT)) == ["1"]
    assert answers(open_rows(lines_of(tmp_path, "x.csv", "a\n2\n"), TEXT)) == ["2"]


@pytest.mark.parametrize("streaming", [False, True])
def test_guessed_types_are_refused_in_texts(tmp_path: Path, streaming: bool) -> None:
    def opened(*values: Any, columns: dict[str, str] = TEXT) -> Any:
        rows = [{"a": value, "b": "x"} for value in values]
        return open_rows(lines_of(tmp_path, "x.json", json.dumps(rows)), columns, streaming=streaming)

    assert answers(opened("3", "three")) == ["3", "three"]
    assert answers(opened(3, 7)) == ["3", "7"]
    assert answers(opened(3, 3.5, "x")) == ["3", "3.5", "x"]
    for values, kind in [
        ((3, 3.5), "double"),
        (("2024-01-01", "2024-01-02"), "timestamp"),
    ]:
        with pytest.raises(
            DataError, match=rf"x\.json'?: column 'a' of columns.text was taken for {kind}.*\.jsonl"
        ):
            opened(*values)
    assert answers(opened(3, 3.5, columns={"image": "{a}", "answer": "{b}"})) == ["x", "x"]


def rows_of(folder: Path, **texts: list[str]) -> Path:
    """Write a Parquet file a split and a shard, named by both."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    for name, values in texts.items():
        pq.write_table(pa.table({"a": pa.array(values, pa.string())}), folder / f"{name}.parquet")
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_shards_without_rows_are_left_out(tmp_path: Path, streaming: bool) -> None:
    """Spark writes them; `datasets` takes none of the others then."""
    folder = rows_of(tmp_path / "some", train_0=["x"], train_1=[], train_2=["y"], test_0=[])
    assert answers(open_rows(folder, TEXT, streaming=streaming)) == ["x", "y"]
    with pytest.raises(DataError, match=r"\(split 'test'\) is empty: it has no rows"):
        open_rows(folder, TEXT, streaming=streaming, split="test")
    with pytest.raises(DataError, match=r"\(split 'train'\) is empty: it has no rows"):
        open_rows(rows_of(tmp_path / "none", only=[]) / "only.parquet", TEXT, streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_saved_dataset_without_rows_says_so(tmp_path: Path, streaming: bool) -> None:
    import datasets

    features = datasets.Features({"a": datasets.Value("string")})
    datasets.Dataset.from_dict({"a": []}, features=features).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DataError, match=r"saved' \(split 'train'\) is empty: it has no rows"):
        open_rows(tmp_path / "saved", TEXT, streaming=streaming)


def test_a_part_of_a_split_without_rows_says_so(tmp_path: Path) -> None:
    path = lines_of(tmp_path, "one.jsonl", '{"a": "x"}\n')
    with pytest.raises(DataError, match=r"\(split 'train\[5:\]'\) is empty: it has no rows"):
        open_rows(path, TEXT, split="train[5:]")


@pytest.mark.parametrize("streaming", [False, True])
def test_files_that_hold_no_rows_say_so(tmp_path: Path, streaming: bool) -> None:
    def opened(name: str, text: str) -> Any:
        return open_rows(lines_of(tmp_path, name, text), TEXT, streaming=streaming)

    for suffix in ("jsonl", "json", "csv", "txt"):
        with pytest.raises(DataError, match=rf"is empty: .*none\.{suffix} holds nothing"):
            opened(f"none.{suffix}", "")
    with pytest.raises(DataError, match="is empty: it has no line with text"):
        opened("blank.jsonl", "\n \n")
    with pytest.raises(DataError, match=r"list.json' \(split 'train'\) is empty: it has no rows"):
        opened("empty_list.json", "[]")
    pretty = [{"a": 1}, {"a": 2}]
    assert answers(opened("list.json", json.dumps([{"a": "1"}], indent=1))) == ["1"]
    for number, text in enumerate(
        (json.dumps({"data": pretty}, indent=1), '{"data": [\n{"a": 1},\n{"a": 2}\n]}')
    ):
        with pytest.raises(DataError, match=r"is no JSON lines: .* one list of objects"):
            opened(f"pretty{number}.json", text)
    with pytest.raises(DataError, match=r"no column 'a'; it has \['data'\]"):
        opened("field.json", json.dumps({"data": pretty}))
    with pytest.raises(DataError, match="data_files names no file"):
        open_rows("json", TEXT, data_files=[], streaming=streaming)


def test_why_a_file_cannot_be_opened_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Expected 2 fields in line 3, saw 3"):
        open_rows(lines_of(tmp_path, "x.csv", "a,b\n1,2\n1,2,3\n"), TEXT)


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_streaming_resumes_after_every_row(tmp_path: Path, kind: str) -> None:
    if kind == "parquet":
        path: Path = parquet(tmp_path, 7, files=2)
    else:
        path = tmp_path / "rows.jsonl"
        path.write_text(
            "".join(json.dumps({"image": "x.png", "caption": f"c{i}"}) + "\n\n" for i in range(14))
        )

    def captions(state: Any, number: int) -> tuple[list[str], list[Any]]:
        source = open_rows(path, CAPTIONS, streaming=True)
        reader = source.rows(state)
        pairs = [next(reader) for _ in range(number)]
        said = [source.sample(row, 0).turns[1].parts[0] for row, _ in pairs]
        return said, [json.loads(json.dumps(state)) for _, state in pairs]

    whole, states = captions(None, 17)  # a pass and a bit
    assert whole == [f"c{index % 14}" for index in range(17)]
    for position, state in enumerate(states[:-1]):
        assert captions(state, 16 - position)[0] == whole[position + 1 :]


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_a_stream_whose_rows_have_changed_is_not_gone_on_with(tmp_path: Path, kind: str) -> None:
    """It would begin anew, or go on at another row, without a word."""
    path = tmp_path / f"rows.{kind}"

    def write(rows: list[str]) -> None:
        if kind == "parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.table({"said": rows}), path, row_group_size=3)
            return
        lines = {"jsonl": [json.dumps({"said": row}) for row in rows], "csv": ["said", *rows]}
        path.write_text("\n".join(lines[kind]) + "\n")

    def read(state: Any, number: int) -> tuple[list[str], Any]:
        source = open_rows(path, {"text": "{said}"}, streaming=True)
        reader = source.rows(state)
        pairs = [next(reader) for _ in range(number)]
        return [source.sample(row, 0).turns[0].parts[0] for row, _ in pairs], pairs[-1][1]

    rows = [f"r{number}" for number in range(10)]
    write(rows)
    _, state = read(None, 6)
    for changed, said in (
        (rows[:4], "there is no row"),
        (["new", *rows], "another row stands"),
        ([f"x{number}" for number in range(10)], "another row stands"),
    ):
        write(changed)
        with pytest.raises(
            DataError, match=f"rows.{kind}' has changed: {said} .*; restore the data, or move"
        ):
            read(state, 1)
    write([*rows[:6], "new", "newer"])  # what is to come may change
    assert read(state, 3)[0] == ["new", "newer", "r0"]
    write(rows[:6])
    assert read(state, 1)[0] == ["r0"]


def test_a_stream_of_pictures_may_be_moved(tmp_path: Path) -> None:
    """As data are where a run goes on at another machine."""

    def reader(folder: Path, state: Any) -> Any:
        return open_rows(folder, {"text": "seen", "image": "{image}"}, streaming=True).rows(state)

    for number in range(4):
        path = tmp_path / "here" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8), number).save(path)
    here = reader(tmp_path / "here", None)
    _, state = [next(here) for _ in range(2)][-1]
    (tmp_path / "here").rename(tmp_path / "there")
    row, _ = next(reader(tmp_path / "there", state))
    assert Path(row["image"]["path"]).name == "2.png"
    (tmp_path / "there" / "1.png").rename(tmp_path / "there" / "11.png")
    with pytest.raises(DataError, match="another row stands"):
        next(reader(tmp_path / "there", state))


def test_rows_of_every_kind_have_digests_of_their_own() -> None:
    kept = {
        "a": 1,
        "b": ["x", None, 0.5],
        "c": {"bytes": b"12", "path": "p"},
        "d": date(2026, 1, 2),
        "e": True,
    }
    others = [
        {**kept, "a": 2},
        {**kept, "b": ["x", 0.5, None]},
        {**kept, "c": {"bytes": b"13", "path": "p"}},
        {**kept, "d": date(2026, 1, 3)},
        {key: kept[key] for key in "abcd"},
        {**kept, "f": object()},
    ]
    digests = [row_digest(row) for row in (kept, *others)]
    assert len(set(digests)) == len(digests)
    assert row_digest(dict(reversed(kept.items()))) == digests[0]
    assert row_digest({"f": object()}) == row_digest({"f": object()})
    assert row_digest({"text": "half of one: \udcff"})


def test_a_path_with_a_variable_is_explained(tmp_path: Path) -> None:
    options = "{path: $DATA/rows.jsonl, columns: {text: '{text}'}}"
    run = plan(write_tiny(tmp_path), [f"data.more={{use: hf-dataset, task: text, options: {options}}}"])
    with pytest.raises(
        DataError, match=r"data.more: .*variables are not expanded: write what \$DATA stands for"
    ):
        open_source(run.data["more"].part)


def test_streaming_rows_become_samples(tmp_path: Path) -> None:
    source = open_rows(parquet(tmp_path, 3), CAPTIONS, streaming=True)
    row, _ = next(source.rows(None))
    assert source.sample(row, 0).turns[0].parts[0] == Item("image", png(0))
    assert list(source.texts()) == ["Describe it.", "c0", "Describe it.", "c1", "Describe it.", "c2"]


def test_missing_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        open_rows(tmp_path / "nowhere", CAPTIONS)
    with pytest.raises(DataError, match=r"tran\.jsonl'?: there is no such file"):
        open_rows(tmp_path / "tran.jsonl", CAPTIONS)
    path = parquet(tmp_path, 1)
    with pytest.raises(DataError, match=r'write answer: "\{caption\}"'):
        open_rows(path, {"image": "{image}", "answer": "caption"})
    with pytest.raises(DataError, match=r"no column 'text'; it has \['caption', 'image'\]"):
        open_rows(path, {"text": "{text}"})
    with pytest.raises(DataError, match="validation"):
        open_rows(path, CAPTIONS, split="validation")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"caption": "{caption}"}, "'caption' is not one of"),
        ({"radar": "{map}", "answer": "{a}"}, "if the items are 'radar', add modality: radar"),
        ({"image": "picture.png", "answer": "x"}, "must be one column in braces"),
        ({"image": "{image}"}, "make no task"),
        ({"question": "{q}"}, "make no task"),
    ],
)
def test_columns_that_make_no_sample_are_refused(columns: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        HfDatasetConfig(path="x", columns=columns)


def reader(columns: dict[str, str]) -> RowReader:
    return RowReader(HfDatasetConfig(path="x", columns=columns), Path("/data"), {"label": ["cat", "dog"]})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": b"x"}, "no column 'caption'"),
        ({"image": b"x", "caption": None}, "column 'caption' is empty"),
        ({"image": b"x", "caption": " "}, "answer is empty"),
        ({"image": b"x", "caption": ["a", "b"]}, "holds list, not text"),
        ({"image": None, "caption": "c"}, "column 'image' is empty"),
        ({"image": {"bytes": None, "path": None}, "caption": "c"}, "the image is empty"),
    ],
)
def test_bad_rows_are_bad_samples(row: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSample, match=message):
        reader(CAPTIONS).sample(row, "k")


def test_class_numbers_out_of_range() -> None:
    with pytest.raises(BadSample, match="holds class -1, but there are 2"):
        reader({"prompt": "{label}", "image": "{image}"}).sample({"label": -1, "image": b"x"}, "k")


BROKEN_TALKS: list[Any] = [[], "hello", [{"from": "dog", "value": "woof"}], ["hello"], [{"from": ["gpt"]}]]
TALK = {"conversations": "{talk}", "image": "{image}"}


@pytest.mark.parametrize(
    ("question", "parts"),
    [
        ("What is it?", (Item("image", b"1"), "What is it?")),
        ("Is <image> a kite?", ("Is ", Item("image", b"1"), " a kite?")),
    ],
)
def test_a_questions_image_stands_where_it_is_marked(question: str, parts: tuple[Part, ...]) -> None:
    columns = {"image": "{image}", "question": "{question}", "answer": "{answer}"}
    read = RowReader(HfDatasetConfig(path="p", columns=columns))
    sample = read.sample({"image": b"1", "question": question, "answer": "yes"}, "k")
    assert sample.turns[0].parts == parts
    with pytest.raises(BadSample, match="marks 2 places with <image> for 1 items"):
        read.sample({"image": b"1", "question": "<image> or <image>?", "answer": "yes"}, "k")


def test_conversations_put_items_where_they_are_marked() -> None:
    talk = [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A cat."},
        {"from": "human", "value": "Sure?"},
        {"from": "gpt", "value": "Yes."},
    ]
    sample = reader(TALK).sample({"talk": talk, "image": "cat.png"}, "k")
    item = Item("image", "/data/cat.png")
    assert sample.task == "understanding"
    assert sample.turns[0] == Turn("user", (item, "\nWhat is it?"))
    assert [turn.role for turn in sample.turns] == ["user", "assistant", "user", "assistant"]
    unmarked = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A cat."}]
    assert reader(TALK).sample({"talk": unmarked, "image": "cat.png"}, "k").turns[0].parts == (item, "What?")


@pytest.mark.parametrize("shown", [{"image": None}, {"image": []}, {}])
def test_conversations_without_items_among_others_are_text_alone(shown: dict[str, Any]) -> None:
    talk = [{"from": "human", "value": "Two and two?"}, {"from": "gpt", "value": "Four."}]
    sample = reader(TALK).sample({"talk": talk, **shown}, "k")
    assert sample.task == "understanding"
    assert sample.turns == (Turn("user", ("Two and two?",)), Turn("assistant", ("Four.",)))
    marked = [{"from": "human", "value": "<image>What?"}, talk[1]]
    with pytest.raises(BadSample, match="marks 1 places with <image> for 0 items"):
        reader(TALK).sample({"talk": marked, **shown}, "k")


@pytest.mark.parametrize("shown", [{"image": None}, {"image": []}, {}])
def test_items_that_a_task_needs_are_there(shown: dict[str, Any]) -> None:
    with pytest.raises(BadSample, match="column 'image'"):
        reader({"image": "{image}", "answer": "a cat"}).sample(shown, "k")


@pytest.mark.parametrize(
    "talk", [[], "hello", [{"from": "dog", "value": "woof"}], ["hello"], [{"from": ["gpt"]}]]
)
def test_broken_conversations(talk: Any) -> None:
    with pytest.raises(BadSample, match=r"messages|roles"):
        reader(TALK).sample({"talk": talk, "image": "cat.png"}, "k")


def test_interleaved_documents() -> None:
    columns = {"text": "{text}", "image": "{images}"}
    row = {"text": "Cut <image> and fold <image>.", "images": [b"1", b"2"]}
    sample = reader(columns).sample(row, "k")
    first, second = Item("image", b"1"), Item("image", b"2")
    assert sample.task == "interleaved"
    assert sample.turns == (Turn("assistant", ("Cut ", first, " and fold ", second, ".")),)
    with pytest.raises(BadSample, match="marks 2 places with <image> for 1 items"):
        reader(columns).sample({**row, "images": [b"1"]}, "k")


def test_what_was_guessed_before_is_not_taken_from_the_cache(tmp_path):
    import datasets

    (tmp_path / "codes.csv").write_text("a\n00501\n02139\n")
    datasets.load_dataset("csv", data_files=str(tmp_path / "codes.csv"))
    assert texts_of(tmp_path / "codes.csv") == ["00501", "02139"]
    (tmp_path / "list.json").write_text('[{"a": 1.5}, {"a": 3}]')
    for _ in range(2):
        with pytest.raises(DataError, match="taken for double"):
            texts_of(tmp_path / "list.json")


def test_types_that_a_card_says_are_taken(tmp_path):
    folder = tmp_path / "said"
    folder.mkdir()
    (folder / "data.jsonl").write_text('{"a": 1.5}\n{"a": 3}\n')
    card = "---\ndataset_info:\n  features:\n  - {name: a, dtype: float64}\n---\n"
    (folder / "README.md").write_text(card)
    for _ in range(2):
        assert texts_of(folder) == ["1.5", "3.0"]


def test_a_folder_that_was_opened_before_is_searched_once(tmp_path, monkeypatch):
    """Finding the files of a folder takes minutes where there are a hundred thousand."""
    from datasets import load

    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(3):
        (folder / f"{index}.png").write_bytes(png(index))
    rows = [json.dumps({"file_name": f"{index}.png", "caption": f"c{index}"}) for index in range(3)]
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    searched, search = [], load.get_data_patterns
    monkeypatch.setattr(load, "get_data_patterns", lambda base: searched.append(base) or search(base))
    for times in (1, 2):
        assert len(open_rows(folder, DRAWN)) == 3
        assert searched == [str(folder)] * times


def test_names_with_brackets_are_names(tmp_path):
    for folder in (tmp_path / "many", tmp_path):
        folder.mkdir(exist_ok=True)
        (folder / "data[1].jsonl").write_text('{"a": "one"}\n{"a": true}\n')
    assert texts_of(tmp_path / "many") == ["one", "true"]
    assert texts_of(tmp_path / "data[1].jsonl") == ["one", "true"]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_split_may_have_other_columns_than_the_first(tmp_path, streaming):
    (tmp_path / "x.csv").write_text("text,n\nno,1\n")
    (tmp_path / "t.csv").write_text("other,a\nno,007\n")
    files = {"train": str(tmp_path / "x.csv"), "test": str(tmp_path / "t.csv")}
    config = {"path": "csv", "data_files": files, "split": "test", "streaming": streaming}
    assert texts_of(**config) == ["007"]


def texts_of(path=None, **options):
    """The texts of column `a`, as training sees them."""
    given = {"path": str(path), **options} if path else options
    config = HfDatasetConfig(columns={"text": "{a}"}, **given)
    source = build(config, config.facts())
    return list(source.texts())


@pytest.mark.parametrize("streaming", [False, True])
def test_a_saved_dataset_is_read_in_the_split_that_was_asked_for(tmp_path, streaming):
    """Read whole instead, what is held out would be trained on."""
    from datasets import Dataset, DatasetDict, NamedSplit

    data = Dataset.from_dict({"text": [f"row {number}" for number in range(10)]}, split=NamedSplit("test"))
    data.save_to_disk(tmp_path / "one")
    DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(tmp_path / "dict")

    def rows(name: str, split: str) -> list[int]:
        source = open_rows(tmp_path / name, {"text": "{text}"}, split=split, streaming=streaming)
        return [int(text.split()[1]) for text in source.texts()]

    for name in ("one", "dict"):
        assert rows(name, "train") == list(range(10))
        assert rows(name, "train[:90%]") == list(range(9))
        assert rows(name, "train[90%:]") == [9]
    assert rows("one", "test[2:4]") == [2, 3]
    assert rows("dict", "test+train[8:]") == [0, 8, 9]
    with pytest.raises(DataError, match=r"split 'valid'\) cannot be opened: ValueError: Unknown split"):
        rows("one", "valid")
