"""The `folder` source: pictures and an index, a JSONL or CSV file with a row for each picture."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.errors import DataError

INDEXES = (".jsonl", ".ndjson", ".csv", ".tsv")


@dataclass(frozen=True, kw_only=True)
class Record:
    """A row of the source as it stands, before its columns are mapped."""

    place: str  # file and line or row, for a person to find it
    source: str  # the data set's name
    values: dict[str, Any] = field(default_factory=dict)
    folders: list[Path] = field(default_factory=list)  # where the picture's file may be
    fault: str = ""  # why the row cannot be read at all


class Folder:
    """A folder with pictures and an index.

    Args:
        path: the folder, or the index itself.
        index: name of the index within the folder; "" takes the only one that is there.

    Raises:
        DataError: there is no such folder or index, or the choice is not clear.
    """

    def __init__(self, path: str, index: str = ""):
        root = Path(path).expanduser()
        if root.is_file() and not index:
            root, index = root.parent, root.name
        if not root.is_dir():
            raise DataError(f"ingest.path: {path!r}: no such folder")
        self.root = root
        self.index = root / (index or _only_index(root))
        if not self.index.is_file():
            raise DataError(f"ingest.index: {index!r}: no such file in {path!r}; there: {_names(_indexes(root))}")
        if self.index.suffix.lower() not in INDEXES:
            raise DataError(f"ingest.index: {index!r}: not one of {', '.join(INDEXES)}; write the rows as JSON lines")

    def columns(self, wanted: set[str]) -> list[str]:
        """Return the columns that are there; reading stops once all `wanted` ones have been seen."""
        seen: dict[str, None] = {}
        for record in self.records():
            seen.update(dict.fromkeys(record.values))
            if wanted <= seen.keys():
                break
        return list(seen)

    def records(self) -> Iterator[Record]:
        """Stream the index's rows in order.

        Raises:
            DataError: the index is no text in UTF-8, or one JSON array instead of a line for each row.
        """
        name, folders = self.root.resolve().name, [self.index.parent, self.root]
        read = _csv if self.index.suffix.lower() in (".csv", ".tsv") else _jsonl
        try:
            for line, values, fault in read(self.index):
                place = f"{self.index.name}:{line}"
                yield Record(place=place, source=name, values=values, folders=folders, fault=fault)
        except UnicodeDecodeError as error:
            raise DataError(f"{self.index}: not UTF-8 text (byte {error.start}); convert it first") from None


def _jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any], str]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            if line.lstrip().startswith("["):
                raise DataError(f"{path}:{number}: a JSON array; write one object on each line (jq -c '.[]')")
            try:
                values, fault = json.loads(line), ""
            except (ValueError, RecursionError) as error:
                values, fault = {}, f"not JSON: {error}"
            if not isinstance(values, dict):
                values, fault = {}, f"not a JSON object: {values!r:.80}"
            yield number, values, fault


def _csv(path: Path) -> Iterator[tuple[int, dict[str, Any], str]]:
    csv.field_size_limit(2**31 - 1)  # the lines of one receipt exceed the default of 128 KiB
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        try:
            for values in reader:
                extra = values.pop(None, None)  # where csv puts fields that no header names
                yield reader.line_num, values, f"more fields than the header: {extra!r:.80}" if extra else ""
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num}: not CSV: {error}; mend the line or write JSON lines") from None


def _indexes(root: Path) -> list[Path]:
    return sorted(file for file in root.iterdir() if file.suffix.lower() in INDEXES)


def _only_index(root: Path) -> str:
    found = _indexes(root)
    if len(found) != 1:
        raise DataError(f"ingest.path: {str(root)!r}: one index expected, there: {_names(found)}; set ingest.index")
    return found[0].name


def _names(files: list[Path]) -> str:
    return ", ".join(file.name for file in files) or f"none of {', '.join('*' + suffix for suffix in INDEXES)}"
