"""Export of pairs as webdataset shards, each with the parquet file that img2dataset writes beside it."""

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
    """Write `pairs` as tar shards `00000.tar`, … with `{key}.jpg`, `.txt` and `.json`; return the number of shards.

    Image bytes and captions are unchanged, so that the source `webdataset` reads the same uids. The JSON and the
    parquet file hold the other columns of the row, including boxes. A shard is written to a temporary file and copied
    when it is complete.

    Args:
        pairs: a dataset of the schema `pairs`.
        out: a folder, local or any URL that fsspec supports.
        rows_per_shard: maximum number of rows of a shard; 10,000 is the default of img2dataset.

    Raises:
        SpaceError: `out` cannot be written.
    """
    folder, rows = resolve_path(out), pairs.rows()
    arrow = PAIRS.arrow_schema
    schema = pa.schema([pa.field("key", pa.string()), *(arrow.field(name) for name in METADATA_COLUMNS)])
    for shard in itertools.count():
        shard_rows = itertools.islice(rows, rows_per_shard)
        first = next(shard_rows, None)
        if first is None:
            return shard
        with tempfile.TemporaryFile() as file:
            metadata = _write_tar(file, shard, itertools.chain([first], shard_rows))
            table = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(metadata, schema=schema), table)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                _upload(file, folder / f"{shard:05d}.tar")
                _upload(table, folder / f"{shard:05d}.parquet")
            except OSError as error:
                raise SpaceError(f"{out}: cannot be written: {error}; use another folder or free space") from None
    raise AssertionError  # itertools.count never ends


def _write_tar(file: IO[bytes], shard: int, rows: itertools.chain[dict[str, Any]]) -> list[dict[str, Any]]:
    rows_metadata = []
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number, row in enumerate(rows):
            metadata = {"key": f"{shard:05d}{number:04d}", **{name: row[name] for name in METADATA_COLUMNS}}
            encoded = row["image"]["bytes"]
            text, described = row["caption"].encode(), json.dumps(metadata).encode()
            for suffix, content in ((_suffix(encoded), encoded), ("txt", text), ("json", described)):
                info = tarfile.TarInfo(f"{metadata['key']}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            rows_metadata.append(metadata)
    return rows_metadata


def _upload(file: IO[bytes], path: UPath) -> None:
    file.seek(0)
    with path.open("wb") as target:
        shutil.copyfileobj(file, target)


def _suffix(encoded: bytes) -> str:
    if encoded[4:12] in (b"ftypavif", b"ftypavis"):
        return "avif"
    return next((suffix for magic, suffix in MAGIC_SUFFIXES.items() if encoded.startswith(magic)), "jpg")
