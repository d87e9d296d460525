"""The `folder` source: pictures and an index, a JSON, JSONL or CSV file with a row for each picture."""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from upath import UPath

from components.ingest.columns import ColumnsConfig
from components.ingest.filesystem import open_path, stream_json
from components.ingest.record import Record, malformed
from vlmflow.errors import DataError, RecordError

INDEX_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".json")


class FolderReader:
    """A folder with pictures and an index.

    Args:
        path: the folder, or the index itself.
        index: name of the index within the folder; "" takes the only one that is there.

    Raises:
        DataError: there is no such folder or index, or the choice is not clear.
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
                f"ingest.index: {index!r}: no such file in {path!r}; there: {_format_names(_index_files(root))}"
            )
        if self.index.suffix.lower() not in INDEX_SUFFIXES:
            raise DataError(
                f"ingest.index: {index!r}: not one of {', '.join(INDEX_SUFFIXES)}; write the rows as JSON lines"
            )

    def columns(self, wanted: ColumnsConfig) -> ColumnsConfig:
        """Find the mapped columns; reading stops once all of them have been seen."""
        seen: dict[str, None] = {}
        for record in self.records():
            seen.update(dict.fromkeys(record.values))
            if set(wanted.mapped.values()) <= seen.keys():
                break
        return wanted.found_in(list(seen), str(self.root)) if seen else wanted  # no column: no row to read

    def records(self) -> Iterator[Record]:
        """Stream the index's rows in order.

        Raises:
            DataError: the index is no text in UTF-8, no JSON, or one JSON array that is named like lines.
        """
        name, folders = self.root.absolute().name, [self.index.parent, self.root]
        for line, values, fault in read_index(self.index):
            yield Record(location=f"{self.index.name}:{line}", source=name, values=values, folders=folders, error=fault)


def read_index(index: UPath) -> Iterator[tuple[int, dict[str, Any], RecordError | None]]:
    """Stream an index: the number of each line or item, its columns, and why it cannot be read."""
    suffix = index.suffix.lower()
    read = _read_csv if suffix in (".csv", ".tsv") else _read_json if suffix == ".json" else _read_jsonl
    try:
        yield from read(index)
    except UnicodeDecodeError as error:
        raise DataError(f"{index}: not UTF-8 text (byte {error.start}); convert it first") from None


def _as_object(values: Any) -> tuple[dict[str, Any], RecordError | None]:
    if isinstance(values, dict):
        return values, None
    return {}, malformed(f"not a JSON object: {values!r:.80}")


def _read_json(index: UPath) -> Iterator[tuple[int, dict[str, Any], RecordError | None]]:
    for number, values in enumerate(stream_json(index, "item"), 1):
        yield number, *_as_object(values)


def _read_jsonl(index: UPath) -> Iterator[tuple[int, dict[str, Any], RecordError | None]]:
    with _open_text(index) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            if line.lstrip().startswith("["):
                raise DataError(f"{index}:{number}: a JSON array; name it .json, or write one object on each line")
            try:
                values, fault = _as_object(json.loads(line))
            except (ValueError, RecursionError) as error:
                values, fault = {}, malformed(f"not JSON: {error}")
            yield number, values, fault


def _read_csv(index: UPath) -> Iterator[tuple[int, dict[str, Any], RecordError | None]]:
    csv.field_size_limit(2**31 - 1)  # the lines of one receipt exceed the default of 128 KiB
    with _open_text(index) as file:
        reader = csv.DictReader(file, delimiter="\t" if index.suffix.lower() == ".tsv" else ",", strict=True)
        try:
            for values in reader:
                extra = values.pop(None, None)  # where csv puts fields that no header names
                yield (
                    reader.line_num,
                    values,
                    malformed(f"more fields than the header: {extra!r:.80}") if extra else None,
                )
        except csv.Error as error:
            raise DataError(f"{index}:{reader.line_num}: not CSV: {error}; mend the line or write JSON lines") from None


def _open_text(index: UPath) -> io.TextIOWrapper:
    return io.TextIOWrapper(index.open("rb"), encoding="utf-8-sig", newline="")  # CSV wants its own line ends


def _index_files(root: UPath) -> list[UPath]:
    return sorted((file for file in root.iterdir() if file.suffix.lower() in INDEX_SUFFIXES), key=str)


def _find_index(root: UPath) -> str:
    found = _index_files(root)
    found = [file for file in found if file.suffix.lower() != ".json"] or found  # which may be something else
    if len(found) != 1:
        raise DataError(
            f"ingest.path: {str(root)!r}: one index expected, there: {_format_names(found)}; set ingest.index"
        )
    return found[0].name


def _format_names(files: list[UPath]) -> str:
    return ", ".join(file.name for file in files) or f"none of {', '.join('*' + suffix for suffix in INDEX_SUFFIXES)}"
