"""JSON, JSONL, CSV and TSV of a source, as plain functions on small files."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from components.ingest import csv_files, json_files
from components.ingest.csv_files import read_csv
from components.ingest.folder import read_index
from components.ingest.json_files import parse_json, parse_literal, stream_json
from vlmflow.errors import DataError, RecordError


def file(tmp_path: Path, name: str, content: str | bytes) -> UPath:
    path = UPath(tmp_path / name)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(path: UPath) -> tuple[list[tuple[int, Any]], list[tuple[int, str]]]:
    """Return the values and the faults of an index, each with its line."""
    read = list(read_index(path))
    return [(n, values) for n, values, fault in read if not fault], [(n, str(fault)) for n, _, fault in read if fault]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 2**20])
def test_json_documents_of_any_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(json_files, "CHUNK_BYTES", chunk)
    items = [1, -2.5e3, 1e-07, 'é\u2028\\"', None, True, [], {}, [[1]], {"a": {"b": [1, "x" * 50]}}, "", "🪁"]
    for ascii_only in (True, False):
        for indent in (None, 1):
            text = json.dumps(items, ensure_ascii=ascii_only, indent=indent)
            assert [item for item, _ in stream_json(file(tmp_path, "a.json", "\ufeff" + text + " \n"))] == items
            text = json.dumps({"info": {"x": [1]}, "skipped": items, "images": items, "n": 12}, ensure_ascii=ascii_only)
            assert [item for item, _ in stream_json(file(tmp_path, "a.json", text), "images")] == items
    assert list(stream_json(file(tmp_path, "a.json", '{"a": [1]}'), "images")) == []
    assert [math.isnan(item) for item, _ in stream_json(file(tmp_path, "a.json", "[NaN]"))] == [True]


@pytest.mark.parametrize("chunk", [3, 2**20])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"a": 1},\n{"a": 2', ":2: not valid JSON: Expecting ',' delimiter, where the file ends"),
        ('[{"a": 1},\n{"a" 2}, {"a": 3}]', ":2: not valid JSON: Expecting ':' delimiter"),
        ("[1 2]", "expected ','"),
        ("[1]\n[2]", ":2: not valid JSON: more than one value"),
        ('{"image": "a"}\n{"image": "b"}', "a JSON object with image, expected an array of rows"),
        ('{"data": [{}]}', "a JSON object with data, expected an array of rows"),
        ("kite", "expected an array"),
        ("", "expected an array, where the file ends"),
        ("[" * 100_000, "recursion"),
        ("[1]".encode("utf-16"), "the encoding is UTF-16"),
    ],
)
def test_what_is_no_array_is_refused_at_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | bytes, said: str, chunk: int
) -> None:
    monkeypatch.setattr(json_files, "CHUNK_BYTES", chunk)
    with pytest.raises(DataError) as caught:
        list(stream_json(file(tmp_path, "a.json", text)))
    assert said in str(caught.value) and "a.json" in str(caught.value)


@pytest.mark.parametrize("chunk", [5, 2**20])
def test_an_item_with_a_bad_byte_or_a_repeated_key_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(json_files, "CHUNK_BYTES", chunk)
    content = '[{"a": "é"},\n{"a": "caf'.encode() + b'\xe9"},\n{"b": {"a": 1, "c": 2, "a": 3}}, {"a": "end"}]'
    read = list(stream_json(file(tmp_path, "a.json", content)))
    assert [item for item, fault in read if not fault] == [{"a": "é"}, {"a": "end"}]
    assert [str(fault) for _, fault in read if fault] == [
        f"not text: line 2, byte {content.index(b'caf') + 3} is not UTF-8",
        "malformed row: key 'a' occurs twice in one object",
    ]
    with pytest.raises(DataError, match="'images' occurs twice"):
        list(stream_json(file(tmp_path, "a.json", '{"images": [1], "images": [2]}'), "images"))


def test_json_text() -> None:
    assert parse_json('{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}
    for text, said in [('{"a": 1, "a": 1}', "'a' occurs twice"), ("{", "not JSON"), ("[" * 100_000, "not JSON"),
                       ("1" * 5000, "not JSON")]:  # fmt: skip
        with pytest.raises(RecordError, match=said):
            parse_json(text)
    assert parse_literal("[{'label': 'kite', 'box': [1, None]}]") == [{"label": "kite", "box": [1, None]}]
    for text in ("[1, 2", "__import__('os')", "kite", "(" * 10_000):
        with pytest.raises(RecordError):
            parse_literal(text)


def test_one_bad_line_of_jsonl_leaves_out_that_line(tmp_path: Path) -> None:
    content = b'{"a": "x\xe2\x80\xa8y"}\n{"a": "caf\xe9"}\n\n{"a": 1, "a": 2}\n7\n{"a": "end"}'
    good, bad = rows(file(tmp_path, "a.jsonl", content))
    assert good == [(1, {"a": "x\u2028y"}), (6, {"a": "end"})]
    assert bad == [
        (2, f"not text: byte {content.index(0xE9)} (0xe9) is not UTF-8; save it as UTF-8"),
        (4, "malformed row: key 'a' occurs twice in one object"), (5, "malformed row: not a JSON object: 7"),
    ]  # fmt: skip


CSV = [
    ("\ufeffa,b\r\n1,\"x\r\ny, \"\"z\"\"\"\r\n", [(2, {"a": "1", "b": 'x\r\ny, "z"'})], []),
    ("a;b\n1;x,y\n", [(2, {"a": "1", "b": "x,y"})], []),
    ("a,b,\n1,x,\n\n2,y,\n", [(2, {"a": "1", "b": "x"}), (4, {"a": "2", "b": "y"})], []),
    ("a,b\r1,x\r2,y\r", [(2, {"a": "1", "b": "x"}), (3, {"a": "2", "b": "y"})], []),
    ("a,b\n1\n2,x,y\n3,z\n", [(4, {"a": "3", "b": "z"})], [(2, "1 fields"), (3, "3 fields")]),
    ('a,b\n1,"open\n2,x\n3,"y"\n', [(3, {"a": "2", "b": "x"}), (4, {"a": "3", "b": "y"})], [(2, "not valid CSV")]),
    ('a,b\n1,"open\n2,x\n', [(3, {"a": "2", "b": "x"})], [(2, "not valid CSV")]),
    (b'a,b\n1,"x\ncaf\xe9"\n2,y\n3,n\0\n', [(4, {"a": "2", "b": "y"})], [(3, "byte 12 (0xe9)"), (5, "is NUL")]),
]  # fmt: skip


@pytest.mark.parametrize(("content", "good", "bad"), CSV)
def test_csv(tmp_path: Path, content: str | bytes, good: list[Any], bad: list[tuple[int, str]]) -> None:
    read, faults = rows(file(tmp_path, "a.csv", content))
    assert read == good
    assert [number for number, _ in faults] == [number for number, _ in bad]
    assert all(said in fault for (_, fault), (_, said) in zip(faults, bad, strict=True))


def test_a_quote_that_is_not_closed_costs_one_line_of_a_long_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_files, "MAX_RECORD_CHARS", 100)
    lines = ["a,b"] + [f"{i},x" for i in range(500)]
    lines[250] = '0,"open'
    good, bad = rows(file(tmp_path, "a.csv", "\n".join(lines)))
    assert len(good) == 499 and [number for number, _ in bad] == [251]


def test_quotes_in_tsv_are_letters_unless_they_enclose_a_field(tmp_path: Path) -> None:
    content = 'a\tb\n1\ta "red" kite\n2\t"quoted" start\n3\t"open\n4\t"a ""red"" kite"\n5\t"\n6\t""\n'
    good, bad = rows(file(tmp_path, "a.tsv", content))
    assert [values["b"] for _, values in good] == [
        'a "red" kite', '"quoted" start', '"open', 'a "red" kite', '"', "",
    ]  # fmt: skip
    assert bad == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a,b,b\n1,x,\n", "column 'b' occurs twice in the header"),
        (b"a,caf\xe9\n1,x\n", "the header cannot be read: not text: byte 5"),
        ("a,b\n1,x\n".encode("utf-16"), "the encoding is UTF-16"),
    ],
)
def test_a_header_that_is_ambiguous_is_refused(tmp_path: Path, content: str | bytes, said: str) -> None:
    with pytest.raises(DataError) as caught:
        list(read_csv(file(tmp_path, "a.csv", content)))
    assert said in str(caught.value) and "a.csv" in str(caught.value)
