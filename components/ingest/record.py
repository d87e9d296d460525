"""A row of a source as it stands, before its columns are mapped; and what every reader of a source can do."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from upath import UPath

from components.ingest.columns import ColumnsConfig
from vlmflow.errors import RecordError


@dataclass(frozen=True, kw_only=True)
class Record:
    """A row of the source."""

    location: str  # file and line, row or key, for a person to find it
    source: str  # the data set's name
    values: dict[str, Any] = field(default_factory=dict)
    folders: list[UPath] = field(default_factory=list)  # where the picture's file may be
    error: RecordError | None = None  # why the row cannot be read at all
    skipped: list[tuple[str, RecordError]] = field(default_factory=list)  # its regions or lines that cannot be read


class Reader(Protocol):
    """Streams a source's records in an order that does not change."""

    def columns(self, wanted: ColumnsConfig) -> ColumnsConfig:
        """Return the mapping that holds: `wanted` as it was found, or the format's own.

        Raises:
            DataError: a mapped column is not there.
        """
        ...

    def records(self) -> Iterator[Record]:
        """Yield the records.

        Raises:
            DataError: a file of the source is missing or damaged as a whole.
        """
        ...


def malformed(detail: str) -> RecordError:
    """The fault of a row that is not what its format asks."""
    return RecordError("damaged row", detail)
