"""The `webdataset` source: tar shards as img2dataset and DataComp write them.

    00000.tar        000000012.jpg  000000012.txt  000000012.json  000000013.jpg  …
    00000.parquet    optional: a row for each key of the shard

A sample consists of the files with the same key, which is the file name up to the first dot: `000000012.jpg`, `.txt`,
`.json`. They stand together in the tar, which may be compressed. The columns of a sample are

- `image`: the file with an image suffix;
- `caption`: the `.txt` file, or else the entry `caption`, `text` or `txt` of the JSON;
- `key`, every entry of the JSON, and `cls`, the `.cls` file;
- every column of the parquet beside its shard (`00000.parquet`), joined by `key`, or else by `uid`;
- every column of the parquet that `ingest.index` names, joined by `uid` (`metadata/*.parquet` of DataComp).

A sample with two files for one of these, or with two rows in a parquet, is refused.

Source: the writer of img2dataset; DataComp (Gadre et al. 2023), appendix on its release.
"""

import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from components.ingest.columns import ColumnsConfig
from components.ingest.filesystem import matching_files, open_path
from components.ingest.json_files import parse_json
from components.ingest.parquet import open_parquet, read_rows, wanted_columns
from components.ingest.record import NOT_DOWNLOADED, Record, malformed
from vlmflow.artifacts.text_files import MAX_TEXT_BYTES, decode_text
from vlmflow.errors import DataError, RecordError
from vlmflow.images.decoding import IMAGE_SUFFIXES
from vlmflow.images.image_bytes import check_size

Sample = tuple[str, dict[str, Any], RecordError | None]  # key, columns and error
CAPTION_KEYS = ("caption", "text", "txt")
MEMBERS = {"txt": "caption", "text": "caption", "caption": "caption", "cls": "cls", "json": "json"}  # column by suffix
SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
PEEK_SAMPLES = 1000  # samples read to find the columns
MAX_PARTS = 64  # images in memory whose names are equal up to the first dot


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
        self.shards = matching_files(path, SHARD_SUFFIXES)
        self.name = open_path(path).absolute().name if "*" not in path else self.shards[0].parent.name
        self.caption = ""
        self.tables = matching_files(f"{path.rstrip('/')}/{index}", (".parquet",)) if index else []
        self.metadata: _MetadataTable | None = None

    def columns(self, wanted: ColumnsConfig) -> ColumnsConfig:
        """Check that the first samples have the mapped columns."""
        columns = set(wanted.mapped.values())
        if self.tables:
            self.metadata = _MetadataTable(self.tables, columns)
        seen: dict[str, None] = dict.fromkeys(self.metadata.names if self.metadata else ())
        for number, record in enumerate(self.records()):
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
            stem = next((shard.name[: -len(end)] for end in SHARD_SUFFIXES if shard.name.endswith(end)), shard.name)
            beside = shard.with_name(f"{stem}.parquet")
            facts = _ShardParquet(beside) if beside.is_file() else None
            try:
                with shard.open("rb") as handle, tarfile.open(fileobj=handle, mode="r|*") as tar:
                    for key, values, fault in _read_samples(tar):
                        try:
                            values = {**(facts.pop(key, values) if facts else {}), **values}
                            if self.metadata:
                                values = {**self.metadata.get(values), **values}
                        except RecordError as reason:
                            fault = fault or reason
                        if not fault and self.caption and values.get(self.caption) is None:
                            fault = RecordError("no caption", f"no {self.caption!r} among {', '.join(sorted(values))}")
                        yield Record(location=f"{shard.name}:{key}", source=self.name, values=values, error=fault)
            except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
                fault = RecordError("damaged shard", f"truncated or not a tar file: {error}")
                yield Record(location=shard.name, source=self.name, error=fault)
                continue  # the missing samples are unknown, so the unmatched keys of the parquet are not reported
            for key, values, fault in facts.unmatched() if facts else ():
                yield Record(location=f"{shard.name}:{key}", source=self.name, values=values, error=fault)


def _read_samples(tar: tarfile.TarFile) -> Iterator[Sample]:
    """Group the members of a shard by key, and yield its samples."""
    group, finished = _Group(""), set[str]()
    for member in tar:
        name = member.name.rpartition("/")[2]
        is_link = member.issym() or member.islnk()
        if not (member.isfile() or is_link) or name.startswith(".") or "__MACOSX/" in member.name:
            continue  # a Mac writes `._NAME` beside every file
        key = member.name[: len(member.name) - len(name)] + name.partition(".")[0]
        if key != group.key:
            yield from group.samples()
            finished.add(group.key)
            group = _Group(key)
            if key in finished:
                group.fault = malformed("the members of its key are not together; write the tar with --sort=name")
        yield from group.finished_before(member.name)
        opened = None if is_link else tar.extractfile(member)
        group.add(member.name, opened or io.BytesIO(), member.size)
        if is_link:
            link = f"{member.name} is a link to {member.linkname}"
            group.fault = malformed(f"{link}; write the tar with --dereference --hard-dereference")
    yield from group.samples()


class _Group:
    """The members whose names are equal up to the first dot: usually one sample.

    If names have more dots, those that are equal up to the last dot are a sample of their own if they have an image and
    a text or JSON (`shot2.0.jpg`, `shot2.0.txt`, `shot2.5.jpg`, `shot2.5.txt`). Other images with more dots are further
    modalities of the sample (`12.depth.png` beside `12.jpg`), which is refused if none of its images is the plain one.
    """

    def __init__(self, key: str):
        self.key, self.last = key, ""
        self.fault: RecordError | None = None
        self.parts: dict[str, _Part] = {}  # by the part of the names between the first dot and the last

    def add(self, name: str, file: IO[bytes], size: int) -> None:
        """Read a member."""
        self.last, suffix = self._split(name)
        part = self.parts.setdefault(self.last, _Part())
        if len(self.parts) > MAX_PARTS:
            part.fault = RecordError("several images", f"{name}: {MAX_PARTS} images are named so up to the first dot")
            file, size = io.BytesIO(), 0
        try:
            part.add(suffix, name, file, size)
        except RecordError as reason:
            part.fault = part.fault or reason

    def finished_before(self, name: str) -> Iterator[Sample]:
        """Yield the last sample if it is complete and `name` is not one of its members."""
        part = self.parts.get(self.last) if self.last and self._split(name)[0] != self.last else None
        if part is not None and part.is_complete:
            yield self._sample(self.last, self.parts.pop(self.last))

    def samples(self) -> Iterator[Sample]:
        """Yield the remaining samples."""
        for name, part in list(self.parts.items()):
            if name and part.is_complete:
                yield self._sample(name, self.parts.pop(name))
        if not self.parts:
            return
        plain = self.parts.pop("", None) or _Part()
        others = {name: part for name, part in self.parts.items() if "image" in part.members}
        if "image" not in plain.members and len(others) > 1:
            names = ", ".join(part.members["image"] for part in list(others.values())[:3])
            for name, part in others.items():
                part.fault = RecordError("several images", f"{names}: names are one sample up to the first dot")
                yield self._sample(name, part)
            return
        if "image" not in plain.members:
            for part in others.values() or self.parts.values():
                plain.values = {**part.values, **plain.values}
                plain.fault = plain.fault or part.fault
        yield self._sample("", plain)

    def _split(self, name: str) -> tuple[str, str]:
        rest = name[len(self.key) + 1 :]
        return rest.rpartition(".")[0], rest.rpartition(".")[2].lower()

    def _sample(self, name: str, part: "_Part") -> Sample:
        key = f"{self.key}.{name}" if name else self.key
        return key, {"key": key.rpartition("/")[2], **part.values}, self.fault or part.fault


class _Part:
    """The columns of a sample, and the names of the members that they come from."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.members: dict[str, str] = {}
        self.fault: RecordError | None = None

    @property
    def is_complete(self) -> bool:
        """Whether there are an image and a text of its own, or an error."""
        return "image" in self.members and (len(self.members) > 1 or self.fault is not None)

    def add(self, suffix: str, name: str, file: IO[bytes], size: int) -> None:
        """Read a member; other suffixes than those of the format are left out.

        Raises:
            RecordError: the sample has such a member already, or it cannot be read.
        """
        what = "image" if f".{suffix}" in IMAGE_SUFFIXES else MEMBERS.get(suffix)
        if what is None:
            return
        if what in self.members:
            raise malformed(f"two members for the {what}: {self.members[what]}, {name}")
        self.members[what] = name
        if what == "image":
            check_size(size)
            self.values["image"] = {"bytes": file.read(), "path": name}
            return
        if size > MAX_TEXT_BYTES:
            raise RecordError("too many bytes", f"{name}: {size} bytes, the limit is {MAX_TEXT_BYTES}")
        try:
            text = decode_text(file.read())
            if what == "json":
                self._add_facts(parse_json(text))
            else:
                self.values[what] = text
        except RecordError as reason:
            raise RecordError(reason.kind, f"{name}: {reason.detail}") from None

    def _add_facts(self, facts: Any) -> None:
        if not isinstance(facts, dict):
            raise malformed(f"not a JSON object: {facts!r:.80}")
        caption = next((facts[column] for column in CAPTION_KEYS if facts.get(column) is not None), None)
        own = {column: value for column, value in facts.items() if column not in ("key", "caption", "image")}
        self.values = {**own, **({"caption": caption} if caption is not None else {}), **self.values}


class _ShardParquet:
    """The parquet file of img2dataset beside a shard: a row for each key, including failed downloads."""

    def __init__(self, path: UPath):
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        self.faults: dict[str, RecordError] = {}
        with open_parquet(path) as file:
            names = file.schema_arrow.names
        self.by = next((name for name in ("key", "uid") if name in names), "")
        if not self.by:
            raise DataError(f"{path}: no column `key` or `uid` to join the shard by; columns: {', '.join(names)}")
        for number, values, fault in read_rows(path):
            key = str(values[self.by]) if self.by in values else f"{path.name}:{number}"
            if key in self.rows and not fault:
                fault = malformed(f"{path.name}: {self.by} {key!r} occurs twice")
            if fault:
                self.faults.setdefault(key, RecordError(fault.kind, f"{path.name}:{number}: {fault.detail}"))
            self.rows[key] = {name: value for name, value in values.items() if name != "image"}

    def pop(self, key: str, values: dict[str, Any]) -> dict[str, Any]:
        """Remove and return the row of a sample; {} if there is none.

        Raises:
            RecordError: the key has two rows, or its row cannot be read.
        """
        joined = str(values.get("uid")) if self.by == "uid" else key.rpartition("/")[2]
        found = self.rows.pop(joined, {})
        if joined in self.faults:
            raise self.faults[joined]
        return {name: value for name, value in found.items() if value is not None}

    def unmatched(self) -> Iterator[tuple[str, dict[str, Any], RecordError]]:
        """Yield the rows without a sample, with their download status as the error."""
        for key, values in self.rows.items():
            fault = RecordError("no image", f"{self.by} {key!r} of {self.path.name} is not in the shard")
            if values.get("status") not in (None, "success"):
                reasons = (str(values[name]) for name in ("status", "error_message") if values.get(name))
                fault = RecordError(NOT_DOWNLOADED, ": ".join(reasons))
            yield key, values, self.faults.get(key, fault)


class _MetadataTable:
    """Metadata tables joined by `uid`: sorted keys and Arrow columns, so that millions of rows fit in memory.

    Only the `wanted` columns are read; `names` lists all columns of the files.
    """

    def __init__(self, paths: list[UPath], wanted: set[str]):
        tables, self.names = [], list[str]()
        for path in paths:
            with open_parquet(path) as file:
                self.names = file.schema_arrow.names
                if "uid" not in self.names:
                    raise DataError(f"{path}: no column 'uid' to join by; columns: {', '.join(self.names)}")
                tables.append(file.read(columns=wanted_columns(path, self.names, {"uid", *wanted})))
        self.table = pa.concat_tables(tables, promote_options="default")
        texts = pc.cast(self.table["uid"], pa.large_string(), safe=False)
        uids = pc.cast(texts, pa.large_binary()).to_numpy().astype(np.bytes_)
        self.order = np.argsort(uids, kind="stable")
        self.uids = uids[self.order]

    def get(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the row of the sample with these `values`.

        Raises:
            RecordError: there are several that differ, or none although the sample needs it.
        """
        uid = values.get("uid")
        wanted = np.bytes_(str(uid).encode("utf-8", "replace"))
        first, end = (int(np.searchsorted(self.uids, wanted, side=side)) for side in ("left", "right"))
        if first == end:
            if all(name in values for name in self.table.column_names if name != "uid"):
                return {}
            raise RecordError("no metadata", f"no row for uid {uid!r:.80} in the metadata")
        try:
            rows = self.table.take(self.order[first:end]).to_pylist()
        except ValueError as error:
            raise RecordError("no metadata", f"the row of uid {uid!r:.80} cannot be read: {error}") from None
        if any(row != rows[0] for row in rows):
            raise RecordError("no metadata", f"uid {uid!r:.80} occurs twice in the metadata, with other values")
        return {name: value for name, value in rows[0].items() if value is not None}
