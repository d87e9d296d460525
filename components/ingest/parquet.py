"""The `parquet` source: tables with a column of images.

An image is bytes, a struct `{"bytes", "path"}` (Hugging Face), or a file name relative to the table's folder:

    image (binary)    caption (string)    objects (struct)
    b"\\x89PNG…"      "a cat"             {"bbox": [[1, 2, 3, 4]], "category": ["cat"]}
"""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from components.ingest.columns import ColumnsConfig
from components.ingest.filesystem import matching_files
from components.ingest.record import Record
from vlmflow.errors import DataError

BATCH_ROWS = 64  # limits memory to a few 100 MB for images of a few MB each


class ParquetReader:
    """Read one parquet file, a folder of them, or a glob pattern.

    Raises:
        DataError: no file matches.
    """

    def __init__(self, path: str, index: str = ""):
        self.path = path
        self.files = matching_files(path, ".parquet")
        self.wanted: set[str] | None = None

    def columns(self, wanted: ColumnsConfig) -> ColumnsConfig:
        """Check that every file has the mapped columns; `records` reads only these."""
        self.wanted = set(wanted.mapped.values())
        schemas = [_column_names(file) for file in self.files]
        return wanted.match_columns([name for name in schemas[0] if all(name in names for names in schemas)], self.path)

    def records(self) -> Iterator[Record]:
        """Stream the rows in order of the file names, in small batches.

        Raises:
            DataError: a file is damaged.
        """
        for path in self.files:
            for number, values in read_rows(path, self.wanted):
                place = f"{path.name}:{number}"
                yield Record(location=place, source=path.stem, values=values, folders=[path.parent])


def read_rows(path: UPath, wanted: set[str] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Stream the rows of one file with their numbers, from 1; only the `wanted` columns, or all if None.

    Raises:
        DataError: the file is not parquet, or damaged.
    """
    number = 0
    try:
        with path.open("rb") as handle, pq.ParquetFile(handle) as file:
            names = [name for name in file.schema_arrow.names if wanted is None or name in wanted]
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=names):
                for values in batch.to_pylist():
                    number += 1
                    yield number, values
    except (pa.ArrowInvalid, OSError) as error:
        where = f"damaged after row {number}" if number else "cannot be read as parquet"
        raise DataError(f"{path}: {where}: {error}") from None


def _column_names(path: UPath) -> list[str]:
    try:
        with path.open("rb") as handle, pq.ParquetFile(handle) as file:
            return file.schema_arrow.names
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: cannot be read as parquet: {error}") from None
