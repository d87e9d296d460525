"""Pairs back out as webdataset shards, with the parquet beside each that img2dataset writes."""

import io
import itertools
import json
import shutil
import tarfile
import tempfile
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from components.ingest.filesystem import resolve_path
from vlmflow.artifacts.dataset import PAIRS, Dataset
from vlmflow.errors import SpaceError

METADATA_COLUMNS = [name for name in PAIRS if name != "image"]
MAGIC_SUFFIXES = {
    b"\xff\xd8": "jpg", b"\x89PNG": "png", b"RIFF": "webp", b"GIF8": "gif", b"BM": "bmp", b"II": "tif", b"MM": "tif",
    b"\0\0\0\x0cjP": "jp2", b"\0\0\1\0": "ico", b"P5": "ppm", b"P6": "ppm",
}  # fmt: skip


def export_webdataset(pairs: Dataset, out: str, rows_per_shard: int = 10000) -> int:
    """Write `pairs` as tar shards `00000.tar`, … with `{key}.jpg`, `.txt` and `.json`; return how many shards.

    Read in again by the source `webdataset`, they give the same uids: bytes and captions are as they were. The
    JSON and the parquet hold the row's other columns, boxes too. A shard is made in a temporary file and copied
    when it is whole.

    Args:
        pairs: a dataset of the schema `pairs`.
        out: a folder, here or at any address that fsspec knows.
        rows_per_shard: at most; 10,000 is img2dataset's own.

    Raises:
        SpaceError: `out` cannot be written.
    """
    folder, rows = resolve_path(out), pairs.rows()
    arrow = PAIRS.arrow_schema
    schema = pa.schema([pa.field("key", pa.string()), *(arrow.field(name) for name in METADATA_COLUMNS)])
    for shard in itertools.count():
        some = itertools.islice(rows, rows_per_shard)
        first = next(some, None)
        if first is None:
            return shard
        with tempfile.TemporaryFile() as file:
            facts = _write_tar(file, shard, itertools.chain([first], some))
            table = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(facts, schema=schema), table)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                _upload(file, folder / f"{shard:05d}.tar")
                _upload(table, folder / f"{shard:05d}.parquet")
            except OSError as error:
                raise SpaceError(f"{out}: cannot be written: {error}; give another folder or make room") from None
    raise AssertionError  # the count has no end


def _write_tar(file: IO[bytes], shard: int, rows: itertools.chain[dict[str, Any]]) -> list[dict[str, Any]]:
    kept = []
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number, row in enumerate(rows):
            facts = {"key": f"{shard:05d}{number:04d}", **{name: row[name] for name in METADATA_COLUMNS}}
            encoded = row["image"]["bytes"]
            text, described = row["caption"].encode(), json.dumps(facts).encode()
            for suffix, content in ((_suffix(encoded), encoded), ("txt", text), ("json", described)):
                info = tarfile.TarInfo(f"{facts['key']}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            kept.append(facts)
    return kept


def _upload(file: IO[bytes], place: UPath) -> None:
    file.seek(0)
    with place.open("wb") as target:
        shutil.copyfileobj(file, target)


def _suffix(encoded: bytes) -> str:
    if encoded[4:12] in (b"ftypavif", b"ftypavis"):
        return "avif"
    return next((suffix for magic, suffix in MAGIC_SUFFIXES.items() if encoded.startswith(magic)), "jpg")
