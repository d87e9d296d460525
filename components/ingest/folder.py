"""The `folder` source: a folder of images and an index with one row per image (JSON, JSONL, CSV or TSV).

    my_set/
      index.jsonl    {"image": "images/0.png", "caption": "a cat"}
      images/0.png

The index is UTF-8: a JSON array of objects, one JSON object per line, or CSV or TSV with a header. Image paths are
relative to the folder of the index or to the root.
"""

from collections.abc import Iterator
from typing import Any

from upath import UPath

from components.ingest.columns import ColumnsConfig
from components.ingest.csv_files import read_csv
from components.ingest.filesystem import open_path
from components.ingest.json_files import parse_json, stream_json
from components.ingest.record import Record, malformed
from vlmflow.artifacts.files import describe_missing, walk
from vlmflow.artifacts.text_files import stream_lines
from vlmflow.errors import DataError, RecordError

INDEX_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".json")


class FolderReader:
    """Read a folder of images and its index.

    Args:
        path: the folder, or the index file.
        index: name of the index in the folder; "" uses the only one.

    Raises:
        DataError: the folder or index does not exist, or `index` is empty and the folder has several.
    """

    def __init__(self, path: str, index: str = ""):
        root = open_path(path)
        if root.is_file() and not index:
            root, index = root.parent, root.name
        if not root.is_dir():
            raise DataError(f"ingest.path: {path!r}: no such folder")
        self.root = root
        self.index = root / (index or _find_index(root))
        if not self.index.is_file():
            raise DataError(
                f"ingest.index: no such file: {describe_missing(index, [root])}; "
                f"found: {_format_names(_index_files(root))}"
            )
        if self.index.suffix.lower() not in INDEX_SUFFIXES:
            raise DataError(f"ingest.index: {index!r}: unknown suffix, use one of {', '.join(INDEX_SUFFIXES)}")

    def columns(self, wanted: ColumnsConfig) -> ColumnsConfig:
        """Check that the mapped columns exist; stops reading as soon as all were found."""
        seen: dict[str, None] = {}
        for record in self.records():
            seen.update(dict.fromkeys(record.values))
            if set(wanted.mapped.values()) <= seen.keys():
                break
        return wanted.match_columns(list(seen), str(self.root)) if seen else wanted  # no column: no row to read

    def records(self) -> Iterator[Record]:
        """Stream the rows of the index in order.

        Raises:
            DataError: the index is no text, JSON or CSV at all, or a JSON array in a file named like JSONL.
        """
        name, folders = self.root.absolute().name, [self.index.parent, self.root]
        for line, values, fault in read_index(self.index):
            yield Record(location=f"{self.index.name}:{line}", source=name, values=values, folders=folders, error=fault)


def read_index(index: UPath) -> Iterator[tuple[int, dict[str, Any], RecordError | None]]:
    """Stream an index: for each line or item its number, its columns, and the error if it cannot be read."""
    suffix = index.suffix.lower()
    if suffix in (".csv", ".tsv"):
        yield from read_csv(index)
    elif suffix == ".json":
        for number, (value, fault) in enumerate(stream_json(index), 1):
            yield number, *_as_object(value, fault)
    else:
        yield from _read_jsonl(index)


def _as_object(value: Any, fault: RecordError | None = None) -> tuple[dict[str, Any], RecordError | None]:
    if fault or not isinstance(value, dict):
        return {}, fault or malformed(f"not a JSON object: {value!r:.80}")
    return value, None


def _read_jsonl(index: UPath) -> Iterator[tuple[int, dict[str, Any], RecordError | None]]:
    for number, line, fault in stream_lines(index):
        if not fault and not line.strip():
            continue
        if not fault and line.lstrip().startswith("["):
            raise DataError(
                f"{index}:{number}: a JSON array in a JSONL file; rename it to .json, or write one object per line"
            )
        try:
            yield number, *_as_object(None if fault else parse_json(line), fault)
        except RecordError as reason:
            yield number, {}, reason


def _index_files(root: UPath) -> list[UPath]:
    return [file for file in walk(root, depth=1) if file.suffix.lower() in INDEX_SUFFIXES]


def _find_index(root: UPath) -> str:
    found = _index_files(root)
    found = [
        file for file in found if file.suffix.lower() != ".json"
    ] or found  # prefer other suffixes: a .json file may be something else
    if len(found) != 1:
        remedy = "set ingest.index"
        below = [] if found else walk(root)
        if any(file.stem.lower() == "metadata" for file in below):
            remedy = "set ingest.source: datasets, which reads a folder with metadata for each split"
        elif any(file.suffix.lower() == ".txt" for file in below):
            remedy = "write one, or set ingest.source: captions, which reads a .txt file for each image"
        raise DataError(f"ingest.path: {str(root)!r}: expected one index, found: {_format_names(found)}; {remedy}")
    return found[0].name


def _format_names(files: list[UPath]) -> str:
    return ", ".join(file.name for file in files) or f"none of {', '.join('*' + suffix for suffix in INDEX_SUFFIXES)}"
