"""Parquet files whose values, columns or bytes are not as they should be."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.ingest.columns import ColumnsConfig
from components.ingest.parquet import ParquetReader
from vlmflow.errors import DataError

WANTED = ColumnsConfig(split="")


def records(path: Path, wanted: ColumnsConfig = WANTED) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    reader = ParquetReader(str(path))
    reader.columns(wanted)
    read = list(reader.records())
    return [r.values for r in read if not r.error], [(r.location, str(r.error)) for r in read if r.error]


def write(path: Path, table: pa.Table) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def test_a_value_that_is_not_text_leaves_out_its_row(tmp_path: Path) -> None:
    raw = pa.array([b"a kite", b"caf\xe9", b"a door"], pa.binary())
    captions = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    write(tmp_path / "p.parquet", pa.table({"image": [b"0", b"1", b"2"], "caption": captions}))
    good, bad = records(tmp_path)
    assert [values["caption"] for values in good] == ["a kite", "a door"]
    assert len(bad) == 1 and bad[0][0] == "p.parquet:2" and "column 'caption'" in bad[0][1]


def test_a_wanted_column_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    doubled = pa.table([["x"], ["a"], ["b"], ["c"], ["c"]], names=["image", "caption", "caption", "n", "n"])
    write(tmp_path / "p.parquet", doubled)
    with pytest.raises(DataError, match=r"p\.parquet: two columns are called 'caption'"):
        records(tmp_path)
    write(tmp_path / "p.parquet", doubled.remove_column(2))
    assert records(tmp_path) == ([{"image": "x", "caption": "a"}], [])  # the columns that nobody reads may be doubled


def test_errors_name_the_file(tmp_path: Path) -> None:
    table = pa.table({"image": ["x"], "caption": ["a"]})
    write(tmp_path / "a.parquet", table)
    whole = write(tmp_path / "b.parquet", table.rename_columns(["image", "text"]))
    with pytest.raises(DataError, match=r"b\.parquet: ingest\.columns\.caption: no column 'caption'"):
        records(tmp_path)
    whole.write_bytes(whole.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"b\.parquet: cannot be read as parquet"):
        records(tmp_path)


def test_a_folder_may_give_a_column(tmp_path: Path) -> None:
    for split, image in (("train", "0"), ("test", "1")):
        write(tmp_path / f"split={split}" / "p.parquet", pa.table({"image": [image], "caption": ["a"]}))
    good, _ = records(tmp_path, ColumnsConfig(split="split"))
    assert [(values["image"], values["split"]) for values in good] == [("1", "test"), ("0", "train")]


def test_a_damaged_row_group_loses_only_its_own_rows(tmp_path: Path) -> None:
    table = pa.table({"image": [f"{i:04d}" * 50 for i in range(300)], "caption": ["a"] * 300})
    pq.write_table(table, tmp_path / "p.parquet", row_group_size=100, compression="gzip", use_dictionary=False)
    content = bytearray((tmp_path / "p.parquet").read_bytes())
    start = pq.ParquetFile(tmp_path / "p.parquet").metadata.row_group(1).column(0).data_page_offset
    content[start : start + 60] = b"\xff" * 60
    (tmp_path / "p.parquet").write_bytes(content)
    good, bad = records(tmp_path)
    assert [values["image"][:4] for values in good] == [f"{i:04d}" for i in (*range(100), *range(200, 300))]
    assert [place for place, _ in bad] == [f"p.parquet:{i}" for i in range(101, 201)]
    assert all(said.startswith("damaged file: row group 2 of p.parquet: ") for _, said in bad)


def test_names_are_relative_to_the_folder_of_the_table_or_of_the_source(tmp_path: Path) -> None:
    write(tmp_path / "set" / "data" / "p.parquet", pa.table({"image": ["../a.png"], "caption": ["a"]}))
    (record,) = ParquetReader(str(tmp_path / "set")).records()
    assert [str(folder) for folder in record.folders] == [str(tmp_path / "set" / "data"), str(tmp_path / "set")]
