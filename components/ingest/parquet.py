"""The `parquet` source: tables with a column of images.

An image is bytes, a struct `{"bytes", "path"}` (Hugging Face), or a file name relative to the table's folder or `path`:

    image (binary)    caption (string)    objects (struct)
    b"\\x89PNG…"      "a cat"             {"bbox": [[1, 2, 3, 4]], "category": ["cat"]}
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from components.ingest.columns import ColumnsConfig
from components.ingest.filesystem import matching_files, resolve_path
from components.ingest.record import Record
from vlmflow.errors import DataError, RecordError

BATCH_ROWS = 64  # limits memory to a few 100 MB for images of a few MB each


class ParquetReader:
    """Read one parquet file, a folder of them, or a glob pattern.

    A folder `name=value` gives its files the column `name`, unless they have it.

    Raises:
        DataError: no file matches.
    """

    def __init__(self, path: str, index: str = ""):
        self.path = path
        self.files = matching_files(path, (".parquet",))
        self.roots = [root] if (root := resolve_path(path)).is_dir() else []
        self.wanted: set[str] | None = None

    def columns(self, wanted: ColumnsConfig) -> ColumnsConfig:
        """Check that every file has the mapped columns; `records` reads only these."""
        self.wanted = set(wanted.mapped.values())
        found = []
        for file in self.files:
            with open_parquet(file) as opened:
                names = opened.schema_arrow.names
            found.append(wanted.match_columns([*names, *_folder_columns(file)], str(file)))
        return next((columns for columns in found if not columns.caption), found[0])

    def records(self) -> Iterator[Record]:
        """Stream the rows in order of the file names, in small batches.

        Raises:
            DataError: a file cannot be opened, or has a wanted column twice.
        """
        for path in self.files:
            folder_columns = _folder_columns(path)
            for number, values, fault in read_rows(path, self.wanted):
                place, values = f"{path.name}:{number}", {**folder_columns, **values}
                folders = list(dict.fromkeys([path.parent, *self.roots]))
                yield Record(location=place, source=path.stem, values=values, folders=folders, error=fault)


def read_rows(path: UPath, wanted: set[str] | None = None) -> Iterator[tuple[int, dict[str, Any], RecordError | None]]:
    """Stream the rows of one file: the number from 1, the `wanted` columns (all if None), and the error if a value
    cannot be read. If a row group is damaged, the rest of its rows have an error.

    Raises:
        DataError: the file is not parquet, or has a wanted column twice.
    """
    number, end = 0, 0
    with open_parquet(path) as file:
        names = wanted_columns(path, file.schema_arrow.names, wanted)
        for group in range(file.num_row_groups):
            end += file.metadata.row_group(group).num_rows
            fault = None
            try:
                for batch in file.iter_batches(batch_size=BATCH_ROWS, row_groups=[group], columns=names):
                    for values, unreadable in _batch_rows(batch):
                        number += 1
                        yield number, values, unreadable
            except (pa.ArrowException, OSError) as error:
                fault = RecordError("damaged file", f"row group {group + 1} of {path.name}: {error}")
            while number < end:
                number += 1
                yield number, {}, fault


@contextmanager
def open_parquet(path: UPath) -> Iterator[pq.ParquetFile]:
    """Open a parquet file.

    Raises:
        DataError: it is not parquet, or cannot be read.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(pq.ParquetFile(stack.enter_context(path.open("rb"))))
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: cannot be read as parquet: {error}; get the file again") from None
        yield file


def wanted_columns(path: UPath, names: list[str], wanted: set[str] | None) -> list[str]:
    """Return the names that are `wanted`, all if None.

    Raises:
        DataError: the file has one of them twice.
    """
    found = [name for name in names if wanted is None or name in wanted]
    if len(set(found)) < len(found):
        twice = next(name for name in found if found.count(name) > 1)
        raise DataError(f"{path}: two columns are called {twice!r}; rename or remove one")
    return found


def _batch_rows(batch: pa.RecordBatch) -> Iterator[tuple[dict[str, Any], RecordError | None]]:
    try:
        yield from ((values, None) for values in batch.to_pylist())
    except ValueError:  # one value is not UTF-8, is a date that Python has not, or is a struct with a name twice
        for row in range(batch.num_rows):
            values, fault = {}, None
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                try:
                    values[name] = column[row].as_py()
                except ValueError as error:
                    fault = RecordError("unreadable value", f"column {name!r}: {error}")
            yield values, fault


def _folder_columns(path: UPath) -> dict[str, str]:
    """Return the columns that folders give to their files (`split=train`), as Spark and Hive write them."""
    return dict(part.split("=", 1) for part in path.parent.parts if "=" in part)
