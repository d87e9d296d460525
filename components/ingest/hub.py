"""The `datasets` source: what `datasets.load_dataset` streams, from the Hugging Face hub or a folder."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from components.ingest.columns import ColumnsConfig
from components.ingest.record import Record
from components.ingest.split import SPLITS
from vlmflow.errors import DataError

SPLIT_COLUMN = "split"  # the column that the name of the split becomes, unless the data has one of that name


class HubReader:
    """A data set by its name or folder, streamed: nothing is downloaded but what is read.

    Args:
        path: `owner/name`, a folder, or an address that the library knows.
        index: the configuration; "" takes the default.

    Raises:
        DataError: there is no such data set, or it cannot be reached.
    """

    def __init__(self, path: str, index: str = ""):
        import datasets

        self.path = path
        try:
            found = datasets.load_dataset(path, index or None, streaming=True)
            self.splits = {str(name): _without_decoding(split) for name, split in found.items()}
        except Exception as error:  # the library's, the hub's and the network's own, of many types
            reason = " ".join(str(error).split())[:300]
            raise DataError(f"ingest.path: {path!r}: `datasets` cannot load it: {reason}") from None

    def columns(self, wanted: ColumnsConfig) -> ColumnsConfig:
        """Find the mapped columns; where none is mapped for it, the split is the data set's own."""
        features = next(iter(self.splits.values())).features
        found = wanted.found_in(list(features), self.path)
        named = len(self.splits) > 1 and not found.split and all(name in SPLITS for name in self.splits)
        return replace(found, split=SPLIT_COLUMN) if named else found

    def records(self) -> Iterator[Record]:
        """Stream the rows of every split, in order.

        Raises:
            DataError: the source breaks off.
        """
        name = self.path.rstrip("/").rpartition("/")[2]
        for split, rows in self.splits.items():
            number = 0
            try:
                for number, row in enumerate(rows, 1):
                    values = {key: _class_names(rows.features[key], value) for key, value in row.items()}
                    yield Record(location=f"{split}:{number}", source=name, values={SPLIT_COLUMN: split, **values})
            except DataError:
                raise
            except Exception as error:  # as above
                reason = " ".join(str(error).split())[:300]
                raise DataError(f"{self.path}: {split}: broke off after row {number}: {reason}") from None


def _without_decoding(split: Any) -> Any:
    """The same rows with pictures as their encoded bytes, wherever they stand in a row."""
    known = split if split.features else split._resolve_features()
    return known.decode(False)


def _class_names(feature: Any, value: Any) -> Any:
    """The names of classes for their numbers, also within lists and mappings."""
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
