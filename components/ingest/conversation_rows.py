"""From a record of talk to a row of the schema `conversations` or `preferences`."""

from collections.abc import Callable, Iterator
from typing import Any

from upath import UPath

from components.ingest.columns import ColumnsConfig
from components.ingest.filesystem import open_path
from components.ingest.folder import FolderReader
from components.ingest.parquet import ParquetReader
from components.ingest.quarantine import Quarantine
from components.ingest.record import Record
from components.ingest.sandboxed_decoder import DecodedImage
from components.ingest.split import resolve_split
from vlmflow.artifacts import dataset
from vlmflow.errors import RecordError
from vlmflow.images import image_bytes

ParseRow = Callable[[dict[str, Any]], tuple[list[Any], dict[str, Any]]]


class ConversationReader:
    """Rows in parquet, JSON or JSONL, and their pictures in the rows or in the folder.

    Raises:
        DataError: nothing is there, or the choice of an index is not clear.
    """

    def __init__(self, path: str, index: str = ""):
        found = open_path(path)
        in_tables = found.suffix == ".parquet" or (found.is_dir() and not index and _has_parquet(found))
        self.reader = ParquetReader(path) if in_tables else FolderReader(path, index)

    def columns(self, wanted: ColumnsConfig) -> ColumnsConfig:
        """Return the mapping: these rows have shapes, not columns, but for a split's."""
        return wanted

    def records(self) -> Iterator[Record]:
        """Stream the rows in order."""
        return self.reader.records()


class ConversationBuilder:
    """Makes rows of `conversations` or `preferences`; what cannot be used goes to the quarantine.

    Args:
        parse: gives a row's pictures and its columns of the schema; raises RecordError.
        filled: columns for rows that do not have their own.
        split: the column of the split; "" draws it by the first picture.
        quarantine: takes what is left out.
        holdout: share of the pictures that is drawn into the test split.
        seed: of that draw.
    """

    def __init__(
        self, parse: ParseRow, filled: dict[str, Any], split: str, quarantine: Quarantine, *, holdout: float, seed: int
    ):
        self.parse, self.defaults, self.split, self.quarantine = parse, filled, split, quarantine
        self.holdout, self.seed = holdout, seed
        self.records = 0
        self.clipped = 0  # boxes, of which it has none

    def read_images(self, record: Record) -> list[bytes]:
        """Return the record's pictures.

        Raises:
            RecordError: one of them is not there, or the record is damaged.
        """
        if record.error:
            raise record.error
        return [image_bytes.read(image, record.folders) for image in self.parse(record.values)[0]]

    def rows(self, record: Record, looked: list[DecodedImage] | RecordError) -> list[dict[str, Any]]:
        """Return the row of `record`; none if it goes to the quarantine.

        Raises:
            DataError: the record's split is neither train nor test.
        """
        self.records += 1
        if isinstance(looked, RecordError):
            image = next((str(record.values[name]) for name in ("image", "images") if record.values.get(name)), "")
            self.quarantine.add("rows", record.location, image[:200], looked)
            return []
        columns = self.parse(record.values)[1]
        images = [one.encoded for one in looked]
        texts = [f"{m['role']}\n{m['content']}" for m in columns.get("messages", [])]
        texts += [columns[name] for name in ("prompt", "chosen", "rejected") if name in columns]
        return [
            {
                "uid": dataset.uid(images[0], *(dataset.uid(image) for image in images[1:]), *texts),
                "pair": "",
                "images": images,
                "split": resolve_split(
                    record.values.get(self.split), images[0], record.location, self.seed, self.holdout
                ),
                **self.defaults,
                **columns,
            }
        ]


def _has_parquet(folder: UPath) -> bool:
    return any(True for _ in folder.glob("**/*.parquet"))
