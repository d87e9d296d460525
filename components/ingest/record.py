"""A record: one row of a source before its columns are mapped, and the interface of every reader."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from upath import UPath

from components.ingest.columns import ColumnsConfig
from vlmflow.errors import RecordError


@dataclass(frozen=True, kw_only=True)
class Record:
    """One row of a source."""

    location: str  # file and line, row or key; written to the quarantine
    source: str  # name of the dataset
    values: dict[str, Any] = field(default_factory=dict)
    folders: list[UPath] = field(default_factory=list)  # folders to search for the image file
    error: RecordError | None = None  # set if the whole row cannot be read
    skipped: list[tuple[str, RecordError]] = field(default_factory=list)  # unreadable regions or lines


class Reader(Protocol):
    """Streams the records of a source in a stable order."""

    def columns(self, wanted: ColumnsConfig) -> ColumnsConfig:
        """Return the column mapping to use: `wanted`, checked, or the fixed mapping of the format.

        Raises:
            DataError: a mapped column does not exist.
        """
        ...

    def records(self) -> Iterator[Record]:
        """Yield the records.

        Raises:
            DataError: a file of the source is missing or unreadable.
        """
        ...


NOT_DOWNLOADED = "not downloaded"  # kind of error of a row that the download of the source lost, not this run


def malformed(detail: str) -> RecordError:
    """Return the error for a row that does not follow its format."""
    return RecordError("malformed row", detail)
