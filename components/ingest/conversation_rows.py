"""Records of conversations or preferences, converted to rows of the schema of that name."""

from collections.abc import Callable, Iterator
from typing import Any

from upath import UPath

from components.ingest.columns import ColumnsConfig
from components.ingest.filesystem import open_path
from components.ingest.folder import FolderReader
from components.ingest.image_access import ImageAccess
from components.ingest.parquet import ParquetReader
from components.ingest.quarantine import Quarantine
from components.ingest.record import Record
from components.ingest.sandboxed_decoder import DecodedImage
from components.ingest.split import resolve_split
from vlmflow.artifacts import dataset
from vlmflow.artifacts.files import walk
from vlmflow.errors import RecordError

ParseRow = Callable[[dict[str, Any]], tuple[list[Any], dict[str, Any]]]


class ConversationReader:
    """Read rows from parquet, JSON or JSONL, with images in the rows or in the folder.

    Raises:
        DataError: the source does not exist, or `index` is empty and the folder has several index files.
    """

    def __init__(self, path: str, index: str = ""):
        root = open_path(path)
        is_parquet = root.suffix == ".parquet" or (root.is_dir() and not index and _has_parquet(root))
        self.reader = ParquetReader(path) if is_parquet else FolderReader(path, index)

    def columns(self, wanted: ColumnsConfig) -> ColumnsConfig:
        """Return the mapping as it is: only its split column is used, and it may be missing."""
        return wanted

    def records(self) -> Iterator[Record]:
        """Stream the rows in order."""
        return self.reader.records()


class ConversationBuilder:
    """Build rows of `conversations` or `preferences`; unusable records go to the quarantine.

    Args:
        parse: return the images of a row and its columns of the schema; may raise RecordError.
        defaults: columns for rows that do not have their own.
        split: the column of the split; "" splits by a hash of the first image.
        quarantine: receives the skipped records.
        access: reads the images that rows name.
        holdout: fraction of images hashed into the test split.
        seed: seed of the hash.
    """

    def __init__(
        self,
        parse: ParseRow,
        defaults: dict[str, Any],
        split: str,
        quarantine: Quarantine,
        access: ImageAccess,
        *,
        holdout: float,
        seed: int,
    ):
        self.parse, self.defaults, self.split, self.quarantine = parse, defaults, split, quarantine
        self.access = access
        self.holdout, self.seed = holdout, seed
        self.records = 0
        self.clipped = 0  # always 0: these rows have no boxes

    def read_images(self, record: Record) -> list[bytes]:
        """Return the encoded images of the record.

        Raises:
            RecordError: an image is missing, or the record is malformed.
        """
        if record.error:
            raise record.error
        return [self.access.read(image, record.folders) for image in self.parse(record.values)[0]]

    def rows(self, record: Record, decoded: list[DecodedImage] | RecordError) -> list[dict[str, Any]]:
        """Return the row of `record`, or [] if it goes to the quarantine."""
        self.records += 1
        try:
            if isinstance(decoded, RecordError):
                raise decoded
            return [self._row(record, decoded)]
        except RecordError as reason:
            image = next((str(record.values[name]) for name in ("image", "images") if record.values.get(name)), "")
            self.quarantine.add("rows", record.location, image[:200], reason)
            return []

    def _row(self, record: Record, decoded: list[DecodedImage]) -> dict[str, Any]:
        columns = self.parse(record.values)[1]
        images = [image.encoded for image in decoded]
        texts = [f"{m['role']}\n{m['content']}" for m in columns.get("messages", [])]
        texts += [columns[name] for name in ("prompt", "chosen", "rejected") if name in columns]
        return {
            "uid": dataset.uid(images[0], *(dataset.uid(image) for image in images[1:]), *texts),
            "pair": "",
            "images": images,
            "split": resolve_split(record.values.get(self.split), images[0], self.seed, self.holdout),
            **self.defaults,
            **columns,
        }


def _has_parquet(folder: UPath) -> bool:
    return any(file.name.lower().endswith(".parquet") for file in walk(folder))
