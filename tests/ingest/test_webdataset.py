"""Shards of tar files: keys, members that occur twice, compression."""

import bz2
import gzip
import json
import lzma
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.ingest.columns import ColumnsConfig
from components.ingest.webdataset import MAX_PARTS, WebDatasetReader
from tests.ingest.test_formats import tar
from vlmflow.errors import DataError

Members = list[tuple[str, bytes]]


def read(path: Path, index: str = "") -> tuple[list[tuple[str, bytes, str]], list[tuple[str, str]]]:
    """Return (key, image, caption) of the samples that can be read, and the key and error of the others."""
    reader = WebDatasetReader(str(path), index)
    reader.caption = "caption"
    good, bad = [], []
    for record in reader.records():
        key = record.location.partition(":")[2]
        if record.error:
            bad.append((key, str(record.error)))
        else:
            good.append((key, record.values["image"]["bytes"], record.values["caption"]))
    return good, bad


def texts(*names: str) -> Members:
    return [(name, name.encode()) for name in names]


@pytest.mark.parametrize(
    ("names", "good", "bad"),
    [
        ("0.jpg 0.txt 0.jpg 0.txt 1.jpg 1.txt", ["1.jpg 1.txt"], {"0": "two members for the image: 0.jpg, 0.jpg"}),
        ("0.jpg 0.png 0.txt", [], {"0": "two members for the image: 0.jpg, 0.png"}),
        ("0.jpg 0.txt 0.caption", [], {"0": "two members for the caption: 0.txt, 0.caption"}),
        ("0.jpg 0.txt 1.jpg 1.txt 0.jpg 0.txt", ["0.jpg 0.txt", "1.jpg 1.txt"], {"0": "--sort=name"}),
        ("0.jpg 1.jpg 0.txt 1.txt", [], {"0": "--sort=name", "1": "--sort=name"}),
        ("0.depth.png 0.jpg 0.txt 1.jpg 1.txt", ["0.jpg 0.txt", "1.jpg 1.txt"], {}),
        ("0.rgb.jpg 0.txt", ["0.rgb.jpg 0.txt"], {}),
        ("a.v1.jpg a.v2.jpg a.txt", [], {"a.v1": "several images: a.v1.jpg, a.v2.jpg", "a.v2": "several images"}),
        ("2.0.jpg 2.0.txt 2.5.jpg 2.5.txt", ["2.0.jpg 2.0.txt", "2.5.jpg 2.5.txt"], {}),
        ("2.0.jpg 2.5.jpg 2.0.txt 2.5.txt", ["2.0.jpg 2.0.txt", "2.5.jpg 2.5.txt"], {}),
        ("2.jpg 2.txt 2.5.jpg 2.5.txt", ["2.5.jpg 2.5.txt", "2.jpg 2.txt"], {}),
        ("d/._0.jpg d/0.jpg d/._0.txt d/0.txt __MACOSX/d/0.jpg", ["d/0.jpg d/0.txt"], {}),
        ("d/0.JPG d/0.TXT e/0.jpg e/0.txt", ["d/0.JPG d/0.TXT", "e/0.jpg e/0.txt"], {}),
    ],
)
def test_members_of_a_key(tmp_path: Path, names: str, good: list[str], bad: dict[str, str]) -> None:
    tar(tmp_path / "set" / "0.tar", texts(*names.split()))
    read_pairs, faults = read(tmp_path / "set")
    assert [f"{image.decode()} {caption}" for _, image, caption in read_pairs] == good
    expected = [(key, said) for key, said in faults if "no caption" not in said]
    assert dict(expected).keys() == bad.keys() and all(bad[key] in said for key, said in expected)


def test_a_shard_of_one_key_is_read_in_little_memory(tmp_path: Path) -> None:
    count = MAX_PARTS * 3
    tar(tmp_path / "a" / "0.tar", texts(*(f"p.{i:03d}.{end}" for i in range(count) for end in ("jpg", "txt"))))
    good, bad = read(tmp_path / "a")
    assert len(good) == count and bad == []
    tar(tmp_path / "b" / "0.tar", texts(*(f"p.{i:03d}.jpg" for i in range(count))))
    good, bad = read(tmp_path / "b")
    assert good == [] and len(bad) == count and all("several images" in said for _, said in bad)


@pytest.mark.parametrize("library", [gzip, bz2, lzma])
def test_compressed_shards(tmp_path: Path, library: Any) -> None:
    plain = tar(tmp_path / "0.tar", texts("0.jpg", "0.txt"))
    shard = tmp_path / "set" / f"a.b.tar.{'bz2' if library is bz2 else 'xz' if library is lzma else 'gz'}"
    shard.parent.mkdir()
    shard.write_bytes(library.compress(plain.read_bytes()))
    pq.write_table(pa.table({"key": ["1"], "status": ["failed_to_download"]}), tmp_path / "set" / "a.b.parquet")
    good, bad = read(tmp_path / "set")
    assert [key for key, _, _ in good] == ["0"] and bad == [("1", "not downloaded: failed_to_download")]
    content = shard.read_bytes()
    shard.write_bytes(content[:20] + bytes(len(content) - 20))
    assert [said.partition(":")[0] for _, said in read(tmp_path / "set")[1]] == ["damaged shard"]


@pytest.mark.parametrize(
    ("member", "said"),
    [
        (("0.json", b'{"caption": "a", "caption": "b"}'), "malformed row: 0.json: key 'caption' occurs twice"),
        (("0.json", b'{"caption": "caf\xe9"}'), "not text: 0.json: byte 16 (0xe9) is not UTF-8"),
        (("0.txt", "a kite".encode("utf-16")), "not text: 0.txt: the encoding is UTF-16"),
        (("0.txt", b"a\0"), "not text: 0.txt: byte 1 is NUL"),
        (("0.json", b"[]"), "malformed row: 0.json: not a JSON object"),
    ],
)
def test_a_member_that_cannot_be_read(tmp_path: Path, member: tuple[str, bytes], said: str) -> None:
    tar(tmp_path / "set" / "0.tar", [("0.jpg", b"x"), member])
    good, bad = read(tmp_path / "set")
    assert good == [] and bad[0][1].startswith(said)


def table(path: Path, **columns: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def test_a_key_with_two_rows_in_the_parquet_beside_its_shard_is_refused(tmp_path: Path) -> None:
    tar(tmp_path / "set" / "0.tar", texts("0.jpg", "0.txt", "1.jpg", "1.txt"))
    table(tmp_path / "set" / "0.parquet", key=["0", "1", "0"], label=["a", "b", "c"])
    good, bad = read(tmp_path / "set")
    assert [key for key, _, _ in good] == ["1"]
    assert bad == [("0", "malformed row: 0.parquet:3: 0.parquet: key '0' occurs twice")]


def test_metadata_without_one_row_for_a_uid_is_refused(tmp_path: Path) -> None:
    members = [
        m
        for i in range(4)
        for m in ((f"{i // 2}.{i}.jpg", b"x"), (f"{i // 2}.{i}.json", json.dumps({"uid": f"u{i}"}).encode()))
    ]
    tar(tmp_path / "set" / "0.tar", members)
    uids = ["u0", "u1", "u1", "u2", "u2"]
    table(tmp_path / "set" / "meta" / "a.parquet", uid=uids, text=["zero", "one", "other", "two", "two"])
    reader = WebDatasetReader(str(tmp_path / "set"), "meta/*.parquet")
    reader.columns(ColumnsConfig(caption="text"))
    found = {r.location[-1]: str(r.error) if r.error else r.values["text"] for r in reader.records()}
    assert (found["0"], found["2"]) == ("zero", "two")
    assert "'u1' occurs twice" in found["1"] and "no row for uid 'u3'" in found["3"]


def test_two_columns_of_one_name_in_the_metadata_are_refused(tmp_path: Path) -> None:
    tar(tmp_path / "set" / "0.tar", texts("0.jpg", "0.txt"))
    (tmp_path / "set" / "meta").mkdir()
    doubled = pa.table([["u"], ["a"], ["b"]], names=["uid", "caption", "caption"])
    pq.write_table(doubled, tmp_path / "set" / "meta" / "a.parquet")
    with pytest.raises(DataError, match="two columns are called 'caption'"):
        WebDatasetReader(str(tmp_path / "set"), "meta/*.parquet").columns(ColumnsConfig())


def test_a_link_in_a_shard_is_refused(tmp_path: Path) -> None:
    shard = tmp_path / "set" / "0.tar"
    shard.parent.mkdir()
    for name in ("0.jpg", "0.txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "1.jpg").hardlink_to(tmp_path / "0.jpg")
    (tmp_path / "1.txt").symlink_to("0.txt")
    with tarfile.open(shard, "w") as file:
        for name in ("0.jpg", "0.txt", "1.jpg", "1.txt"):
            file.add(tmp_path / name, name)
    good, bad = read(shard.parent)
    assert [key for key, _, _ in good] == ["0"]
    assert [key for key, _ in bad] == ["1"] and "is a link to 0" in bad[0][1]


def test_tables_beside_a_shard_may_have_values_that_are_not_text(tmp_path: Path) -> None:
    raw = pa.array([b"0", b"caf\xe9", b"2"], pa.binary())
    broken = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    members = [m for i in (0, 2) for m in ((f"{i}.jpg", b"x"), (f"{i}.json", json.dumps({"uid": str(i)}).encode()))]
    tar(tmp_path / "set" / "0.tar", members)
    pq.write_table(pa.table({"key": broken, "caption": ["a", "b", "c"]}), tmp_path / "set" / "0.parquet")
    good, bad = read(tmp_path / "set")
    assert [(key, caption) for key, _, caption in good] == [("0", "a"), ("2", "c")]
    assert [key for key, _ in bad] == ["0.parquet:2"] and "column 'key'" in bad[0][1]
    (tmp_path / "set" / "0.parquet").unlink()
    (tmp_path / "set" / "meta").mkdir()
    columns = {"uid": broken, "caption": pa.Array.from_buffers(pa.string(), 3, raw.buffers())}
    pq.write_table(pa.table(columns), tmp_path / "set" / "meta" / "a.parquet")
    reader = WebDatasetReader(str(tmp_path / "set"), "meta/*.parquet")
    reader.columns(ColumnsConfig())
    assert [record.values.get("caption") for record in reader.records()] == ["0", "2"]
