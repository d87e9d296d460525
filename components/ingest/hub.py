"""The `datasets` source: any dataset that `datasets.load_dataset` can stream, from the Hugging Face hub or a folder.

    ingest:
      source: datasets
      path: owner/name         # or a local folder
      index: configuration     # "" uses the default configuration
      columns: {image: image, caption: caption, label: label}

Class labels are replaced by their names. If the dataset has several splits, all with known names, and no split
column is mapped, its own splits are used.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from upath import UPath

from components.ingest.columns import ColumnsConfig
from components.ingest.record import Record
from components.ingest.split import SPLITS
from vlmflow.errors import DataError

SPLIT_COLUMN = "split"  # holds the name of the split, unless the data has a column of this name


class HubReader:
    """Stream a dataset by name or folder; only the rows that are read are downloaded.

    Args:
        path: `owner/name`, a folder, or a URL that the library supports.
        index: the configuration; "" uses the default.

    Raises:
        DataError: the dataset does not exist or cannot be reached.
    """

    def __init__(self, path: str, index: str = ""):
        import datasets

        self.path = path
        # Images of an ImageFolder are names of files; those of other datasets are bytes.
        self.root = UPath(path).expanduser().absolute() if Path(path).expanduser().is_dir() else None
        try:
            found = datasets.load_dataset(path, index or None, streaming=True)
            self.splits = {str(name): _without_decoding(split) for name, split in found.items()}
        except Exception as error:  # the library, the hub and the network raise many types
            reason = " ".join(str(error).split())[:300]
            raise DataError(f"ingest.path: {path!r}: the `datasets` library cannot load it: {reason}") from None

    def columns(self, wanted: ColumnsConfig) -> ColumnsConfig:
        """Check that the mapped columns exist; without a split column, use the splits of the dataset."""
        features = next(iter(self.splits.values())).features
        found = wanted.match_columns(list(features), self.path)
        named = len(self.splits) > 1 and not found.split and all(name in SPLITS for name in self.splits)
        return found.model_copy(update={"split": SPLIT_COLUMN}) if named else found

    def records(self) -> Iterator[Record]:
        """Stream the rows of every split, in order.

        Raises:
            DataError: reading fails.
        """
        name = self.path.rstrip("/").rpartition("/")[2]
        for split, rows in self.splits.items():
            number = 0
            try:
                for number, row in enumerate(rows, 1):
                    values = {key: self._convert(rows.features[key], value) for key, value in row.items()}
                    yield Record(
                        location=f"{split}:{number}",
                        source=name,
                        values={SPLIT_COLUMN: split, **values},
                        folders=[self.root] if self.root else [],
                    )
            except DataError:
                raise
            except Exception as error:  # as above
                reason = " ".join(str(error).split())[:300]
                raise DataError(f"{self.path}: {split}: reading failed after row {number}: {reason}") from None

    def _convert(self, feature: Any, value: Any) -> Any:
        """Replace class numbers by names, and the absolute path of an image by the one relative to the folder."""
        is_file = self.root and isinstance(value, dict) and value.get("bytes") is None and value.get("path")
        if is_file and Path(value["path"]).is_relative_to(str(self.root)):
            return {**value, "path": str(Path(value["path"]).relative_to(str(self.root)))}
        return _class_names(feature, value)


def _without_decoding(split: Any) -> Any:
    """Return the rows with images as encoded bytes, at any depth of a row."""
    known = split if split.features else split._resolve_features()
    return known.decode(False)


def _class_names(feature: Any, value: Any) -> Any:
    """Replace class numbers by class names, also in lists and dicts."""
    from datasets import ClassLabel, LargeList, List

    if value is None:
        return None
    if isinstance(feature, ClassLabel):
        return feature.int2str(value) if isinstance(value, int) and value >= 0 else value
    if isinstance(feature, List | LargeList):
        return [_class_names(feature.feature, entry) for entry in value]
    if isinstance(feature, dict):
        return {key: _class_names(feature.get(key), entry) for key, entry in value.items()}
    return value
