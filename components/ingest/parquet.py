"""The `parquet` source: tables whose picture column holds bytes, `{"bytes", "path"}`, or a file's name."""

import glob
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from components.errors import DataError
from components.ingest.folder import Record

BATCH_ROWS = 64  # pictures of some MB each stay within some 100 MB


class Parquet:
    """One parquet file, a folder of them, or a glob pattern.

    Raises:
        DataError: nothing is there, or a file is no parquet.
    """

    def __init__(self, path: str):
        place = str(Path(path).expanduser())
        found = sorted(Path(place).rglob("*.parquet")) if Path(place).is_dir() else sorted(map(Path, glob.glob(place)))
        self.files = [file for file in found if file.is_file()]
        if not self.files:
            raise DataError(f"ingest.path: {path!r}: no parquet file here")
        self.wanted: set[str] | None = None

    def columns(self, wanted: set[str]) -> list[str]:
        """Return the columns that every file has; only the `wanted` ones are read by `records`."""
        self.wanted = wanted
        schemas = [_open(file).schema_arrow.names for file in self.files]
        return [name for name in schemas[0] if all(name in names for names in schemas)]

    def records(self) -> Iterator[Record]:
        """Stream the rows in order of the files' names, a few at a time.

        Raises:
            DataError: a file is damaged.
        """
        for path in self.files:
            number = 0
            with _open(path) as file:
                names = [name for name in file.schema_arrow.names if self.wanted is None or name in self.wanted]
                try:
                    for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=names):
                        for values in batch.to_pylist():
                            number += 1
                            place = f"{path.name}:{number}"
                            yield Record(place=place, source=path.stem, values=values, folders=[path.parent])
                except (pa.ArrowInvalid, OSError) as error:
                    raise DataError(f"{path}: damaged after row {number}: {error}") from None


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: cannot be read as parquet: {error}") from None
