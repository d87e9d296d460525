"""The `webdataset` source: tar shards as img2dataset and DataComp write them.

    00000.tar        000000012.jpg  000000012.txt  000000012.json  000000013.jpg  …
    00000.parquet    optional: a row for each key of the shard

A sample consists of the files with the same key, which is the file name up to the first dot: `000000012.jpg`, `.txt`,
`.json`. Its columns are

- `image`: the file with an image suffix;
- `caption`: the `.txt` file, or else the entry `caption`, `text` or `txt` of the JSON;
- `key`, every entry of the JSON, and `cls`, the `.cls` file;
- every column of the parquet beside its shard (`00000.parquet`), joined by `key`, or else by `uid`;
- every column of the parquet that `ingest.index` names, joined by `uid` (`metadata/*.parquet` of DataComp).

Source: the writer of img2dataset; DataComp (Gadre et al. 2023), appendix on its release.
"""

import json
import tarfile
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from upath import UPath

from components.ingest.columns import ColumnsConfig
from components.ingest.filesystem import matching_files, open_path
from components.ingest.parquet import read_rows
from components.ingest.record import Record, malformed
from vlmflow.errors import DataError, RecordError
from vlmflow.images.decoding import IMAGE_SUFFIXES
from vlmflow.images.image_bytes import check_size

CAPTION_KEYS = ("caption", "text", "txt")
PEEK_SAMPLES = 1000  # samples read to find the columns
MAX_TEXT_BYTES = 2**24  # a larger text or JSON member is refused


class WebDatasetReader:
    """Read tar shards: one file, a folder of them, or a glob pattern.

    Args:
        path: the shards.
        index: metadata parquet in the folder `path`, a file name or a pattern; "" if there is none.

    Raises:
        DataError: no file matches.
    """

    def __init__(self, path: str, index: str = ""):
        self.path = path
        self.shards = matching_files(path, ".tar")
        self.name = open_path(path).absolute().name if "*" not in path else self.shards[0].parent.name
        self.caption = ""
        self.tables = matching_files(f"{path.rstrip('/')}/{index}", ".parquet") if index else []
        self.metadata: _MetadataTable | None = None

    def columns(self, wanted: ColumnsConfig) -> ColumnsConfig:
        """Check that the first samples have the mapped columns."""
        columns = set(wanted.mapped.values())
        if self.tables:
            self.metadata = _MetadataTable(self.tables, columns)
        seen: dict[str, None] = dict.fromkeys(self.metadata.names if self.metadata else ())
        for number, record in enumerate(self.records()):
            if not record.error:
                seen.update(dict.fromkeys(record.values))
            if number == PEEK_SAMPLES or columns <= seen.keys():
                break
        found = wanted.match_columns(list(seen), self.path) if seen else wanted
        self.caption = found.caption
        return found

    def records(self) -> Iterator[Record]:
        """Stream the samples, shard by shard in order of their names.

        A sample without image or caption, and a key whose download failed, give a record with an error. A damaged
        shard gives one record with an error after its readable samples; reading goes on with the next shard.

        Raises:
            DataError: the parquet file beside a shard is damaged.
        """
        for shard in self.shards:
            beside = shard.with_suffix(".parquet")
            facts = _ShardParquet(beside) if beside.is_file() else None
            try:
                with shard.open("rb") as handle, tarfile.open(fileobj=handle, mode="r|*") as tar:
                    for key, values, fault in _read_samples(tar):
                        values = {**(facts.pop(key, values) if facts else {}), **values}
                        if self.metadata:
                            values = {**self.metadata.get(values.get("uid")), **values}
                        if not fault and self.caption and values.get(self.caption) is None:
                            fault = RecordError("no caption", f"no {self.caption!r} among {', '.join(sorted(values))}")
                        yield Record(location=f"{shard.name}:{key}", source=self.name, values=values, error=fault)
            except (tarfile.TarError, EOFError, OSError) as error:
                fault = RecordError("damaged shard", f"truncated or not a tar file: {error}")
                yield Record(location=shard.name, source=self.name, error=fault)
                continue  # the missing samples are unknown, so the unmatched keys of the parquet are not reported
            for key, values, fault in facts.unmatched() if facts else ():
                yield Record(location=f"{shard.name}:{key}", source=self.name, values=values, error=fault)


def _read_samples(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, Any], RecordError | None]]:
    """Group the members by key; the format requires that the members of a key are consecutive."""
    key, values, fault = "", {}, None
    for member in tar:
        if not member.isfile():
            continue
        folder, slash, name = member.name.rpartition("/")
        stem, _, suffix = name.partition(".")
        if folder + slash + stem != key:
            if values:
                yield key, values, fault
            key, fault = folder + slash + stem, None
            values = {"key": stem}
        opened = tar.extractfile(member)
        assert opened is not None  # only None for members that are not files
        try:
            _add_member(values, suffix.lower(), member.name, opened, member.size)
        except RecordError as reason:
            fault = fault or reason
    if values:
        yield key, values, fault


def _add_member(values: dict[str, Any], suffix: str, name: str, file: IO[bytes], size: int) -> None:
    last = suffix.rpartition(".")[2]
    if f".{last}" in IMAGE_SUFFIXES:
        check_size(size)
        values.setdefault("image", {"bytes": file.read(), "path": name})
    elif size > MAX_TEXT_BYTES:
        raise RecordError("too many bytes", f"{name}: {size} bytes, the limit is {MAX_TEXT_BYTES}")
    elif suffix == "json":
        try:
            facts = json.loads(file.read())
        except (ValueError, RecursionError) as error:
            raise malformed(f"{name}: not JSON: {error}") from None
        if not isinstance(facts, dict):
            raise malformed(f"{name}: not a JSON object: {facts!r:.80}")
        caption = next((facts[column] for column in CAPTION_KEYS if facts.get(column) is not None), None)
        values.update({column: value for column, value in facts.items() if column not in ("key", "caption", "image")})
        if caption is not None:
            values.setdefault("caption", caption)
    elif suffix in ("txt", "cls", "text", "caption"):
        column = "cls" if suffix == "cls" else "caption"
        try:
            values[column] = file.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise RecordError("not text", f"{name}: not UTF-8 (byte {error.start})") from None


class _ShardParquet:
    """The parquet file of img2dataset beside a shard: a row for each key, including failed downloads."""

    def __init__(self, path: UPath):
        self.rows: dict[str, dict[str, Any]] = {}
        for _, values in read_rows(path):
            by = next((name for name in ("key", "uid") if name in values), None)
            if by is None:
                raise DataError(f"{path}: no column `key` or `uid` to join the shard by; columns: {', '.join(values)}")
            self.by = by
            self.rows[str(values[by])] = {name: value for name, value in values.items() if name != "image"}

    def pop(self, key: str, values: dict[str, Any]) -> dict[str, Any]:
        """Remove and return the row of a sample; {} if there is none."""
        found = self.rows.pop(str(values.get("uid")) if self.by == "uid" else key.rpartition("/")[2], {})
        return {name: value for name, value in found.items() if value is not None}

    def unmatched(self) -> Iterator[tuple[str, dict[str, Any], RecordError]]:
        """Yield the rows without a sample, with their download status as the error."""
        for key, values in self.rows.items():
            status = ": ".join(str(values[name]) for name in ("status", "error_message") if values.get(name))
            yield key, values, RecordError("no image", status or "the key is not in the shard")


class _MetadataTable:
    """Metadata tables joined by `uid`: sorted keys and Arrow columns, so that millions of rows fit in memory.

    Only the `wanted` columns are read; `names` lists all columns of the files.
    """

    def __init__(self, paths: list[UPath], wanted: set[str]):
        tables, self.names = [], list[str]()
        for path in paths:
            try:
                with path.open("rb") as handle, pq.ParquetFile(handle) as file:
                    self.names = file.schema_arrow.names
                    tables.append(file.read(columns=[name for name in self.names if name in {"uid", *wanted}]))
            except (pa.ArrowInvalid, OSError) as error:
                raise DataError(f"{path}: cannot be read as parquet: {error}") from None
            if "uid" not in self.names:
                raise DataError(f"{path}: no column 'uid' to join by; columns: {', '.join(self.names)}")
        self.table = pa.concat_tables(tables, promote_options="default")
        uids = pc.cast(self.table["uid"], pa.string()).to_numpy().astype(np.bytes_)
        self.order = np.argsort(uids, kind="stable")
        self.uids = uids[self.order]

    def get(self, uid: Any) -> dict[str, Any]:
        """Return the row of `uid`; {} if there is none."""
        wanted = np.bytes_(str(uid).encode("utf-8", "replace"))
        at = int(np.searchsorted(self.uids, wanted))
        if at == len(self.uids) or self.uids[at] != wanted:
            return {}
        row = self.table.slice(int(self.order[at]), 1).to_pylist()[0]
        return {name: value for name, value in row.items() if value is not None}
