"""The YAML reader: YAML 1.2 scalars, refusals with file, line and column, and bombs defused."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any

import pytest

from janus_plugins.core.errors import RunFileError
from janus_plugins.core.yaml_file import MAX_BYTES, dump_yaml, load_yaml, load_yaml_text, parse_yaml


def value(text: str) -> Any:
    """Read one scalar."""
    return load_yaml_text(f"x: {text}", "f.yaml").data["x"]


def refusal(text: str) -> str:
    """Read what cannot be read."""
    with pytest.raises(RunFileError) as raised:
        load_yaml_text(text, "f.yaml")
    assert raised.value.exit_code == 2
    return str(raised.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("1.e+3", 1e3),
        (".5", 0.5),
        ("-2.5", -2.5),
        ("1.0", 1.0),
        ("12", 12),
        ("-12", -12),
        ("010", 10),
        ("0x1f", 31),
        ("0o17", 15),
        ("9223372036854775807", 2**63 - 1),
        ("true", True),
        ("True", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("on", "on"),
        ("yes", "yes"),
        ("n", "n"),
        ("12:30", "12:30"),
        ("2020-01-01", "2020-01-01"),
        ("1_000", "1_000"),
        ("'1e-4'", "1e-4"),
        ('"true"', "true"),
        ("1.5.2", "1.5.2"),
        ("e5", "e5"),
        (".", "."),
        ("=", "="),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, expected: Any) -> None:
    found = value(text)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("a: .nan", "1:4", ".nan is not a finite number"),
        ("a: -.inf", "1:4", "-.inf is not a finite number"),
        ("a: [1, 1e999]", "1:8", "1e999 is not a finite number"),
        ("a: 9223372036854775808", "1:4", "not a finite number of at most 64 bits"),
        ("a: " + "9" * 5000, "1:4", "not a finite number of at most 64 bits"),
        ("a: 1\nb: 2\na: 3", "3:1", "key 'a' is given twice, first on line 1"),
        ("x:\n  a: 1\n  'a': 2", "3:3", "key 'a' is given twice, first on line 2"),
        ("a: !!python/object/apply:os.system [ls]", "1:4", "tags are not allowed"),
        ("a: !!python/name:os.system", "1:4", "tags are not allowed"),
        ("a: !!str 5", "1:4", "tags are not allowed"),
        ("a: !custom {b: 1}", "1:4", "tags are not allowed"),
        ("a: 1\n\tb: 2", "2:1", "indent with spaces"),
        ("a: 1\nb: c: d", "2:5", "put text that holds ': ' in quotes"),
        ("a: [1, 2", "1:9", "expected ',' or ']'"),
        ("a: 'b", "1:6", "unexpected end of stream"),
        ("a: 1\nb: c\x07", "2:5", "U+0007 may not stand in YAML"),
        ("1: a", "1:1", "a key must be text; write '1' in quotes"),
        ("a:\n  true: b", "2:3", "a key must be text"),
        ("? [a]\n: 1", "1:3", "a key must be text"),
        ("a: *b", "1:4", "undefined alias 'b'"),
        ("a: &x [*x]", "1:8", "an alias inside its own anchor"),
        ("a: {<<: 3}", "1:9", "'<<' takes a mapping"),
        ("a: 1\n---\nb: 2", "2:1", "another document"),
        ("", "1:1", "the file is empty"),
        ("# nothing\n", "1:1", "the file is empty"),
        ("- a\n- b", "1:1", "the top level must be 'key: value' lines, not a list"),
        ("just text", "1:1", "not 'just text'"),
    ],
)
def test_bad_yaml_is_refused_where_it_stands(text: str, place: str, said: str) -> None:
    message = refusal(text)
    assert message.startswith(f"f.yaml:{place}: ")
    assert said in message


def test_anchors_and_merge_keys_work() -> None:
    text = "base: &b {x: 1, y: 2}\ncopy: *b\nmore:\n  <<: *b\n  y: 3\nboth: {<<: [{x: 7}, *b], z: 1}\n"
    assert load_yaml_text(text, "f").data == {
        "base": {"x": 1, "y": 2},
        "copy": {"x": 1, "y": 2},
        "more": {"x": 1, "y": 3},
        "both": {"x": 7, "y": 2, "z": 1},
    }


BOMBS = {
    "billion laughs": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(
        f"{'abcdefghij'[i]}: &{'abcdefghij'[i]} [{','.join(['*' + 'abcdefghij'[i - 1]] * 9)}]\n"
        for i in range(1, 10)
    ),
    "merged laughs": "a: &a {k: v}\n"
    + "".join(
        f"b{i}: &b{i} {{l: *{p}, m: *{p}, n: *{p}}}\n"
        for i, p in enumerate(["a", *(f"b{n}" for n in range(30))])
    ),
    "deep lists": "a: " + "[" * 5000 + "]" * 5000,
    "deep mappings": "a: " + "{b: " * 5000 + "1" + "}" * 5000,
    "deep blocks": "- " * 5000 + "a",
    "deep blocks by indentation": "".join(" " * depth + "a:\n" for depth in range(400)),
    "ten megabytes": "a: " + "x" * 10_000_000,
    "many values": "a: [" + "1," * 60_000 + "]",
    "many keys": "a: {" + ",".join(f"k{i}: 1" for i in range(12_000)) + "}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_quickly_in_little_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(BOMBS[name])
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()
    with pytest.raises(RunFileError, match=r"bomb\.yaml"):
        load_yaml(path)
    assert time.thread_time() - started < 5.0  # the bombs would take minutes; CI machines are busy
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def test_a_file_up_to_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "long.yaml"
    path.write_text("a: '" + "x" * (MAX_BYTES - 6) + "'")
    assert len(load_yaml(path).data["a"]) == MAX_BYTES - 6
    path.write_text("a: '" + "x" * (MAX_BYTES - 4) + "'")
    with pytest.raises(RunFileError, match="larger than 128 KiB"):
        load_yaml(path)


def test_encodings(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes("\ufeffa: \u00e9\U0001f600\n".encode())
    assert load_yaml(path).data == {"a": "\u00e9\U0001f600"}
    path.write_bytes(b"a: 1\nb: caf\xe9\n")
    with pytest.raises(RunFileError, match=r"run.yaml:2:7: byte 0xe9 is not UTF-8"):
        load_yaml(path)


def test_what_cannot_be_opened_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match="No such file"):
        load_yaml(tmp_path / "none.yaml")
    with pytest.raises(RunFileError, match="directory"):
        load_yaml(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.yaml").write_text("name: x")
    with pytest.raises(RunFileError, match=r"the model in it has the run file .*model/config\.yaml"):
        load_yaml(tmp_path)


def test_every_value_keeps_its_line() -> None:
    document = load_yaml_text("a:\n  b: [1,\n    2]\n  c:\n    - x: 1\n      y: 2\n    - z\n", "f.yaml")
    lines = {
        ("a",): 1,
        ("a", "b"): 2,
        ("a", "b", 1): 3,
        ("a", "c"): 4,
        ("a", "c", 0, "y"): 6,
        ("a", "c", 1): 7,
        ("a", "nothing"): None,
        ("a", "c", 2): None,
        ("a", "b", "x"): None,
    }
    assert {path: document.line_of(path) for path in lines} == lines


def test_a_value_without_lines_names_its_source_alone() -> None:
    assert parse_yaml("[1, {a: 2}]", "--set x", numbered=False).plain() == [1, {"a": 2}]
    assert parse_yaml("", "--set x", numbered=False).plain() is None
    with pytest.raises(RunFileError, match=r"^--set x: expected"):
        parse_yaml("[1", "--set x", numbered=False)


def test_what_is_dumped_reads_back_equal() -> None:
    data = {
        "texts": ["1e-4", "on", "true", "null", "", "~", "12:30", "010", "0x1f", "<<", "- a", "a: b", "#"],
        "lines": "one\n\ntwo \n",
        "wide": "word " * 60,
        "strange": "caf\u00e9 \U0001f600 \x07 \t",
        "numbers": [1e-4, 1e-12, 3.0, 1e22, -0.5, 12, -3, True, False, None],
        "nested": {"a.b": {"<<": {}, "c d": []}},
    }
    data["shared"] = data["nested"]
    assert load_yaml_text(dump_yaml(data), "dumped").data == data
