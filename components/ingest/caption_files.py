"""The `captions` source: images, and for each a text file with its caption.

    set/
      train/a.jpg
      train/a.txt      a red kite over a hill

The text of the file is the caption, as it is written, without the line end after it. The text file is beside its image
or in another folder (`images`, `txt`). The split is that of the folder (`train`, `val`), if it names one.
"""

from collections.abc import Iterator
from typing import Any

from upath import UPath

from components.ingest.annotation_files import SkippedItems, paired_records
from components.ingest.columns import ColumnsConfig
from components.ingest.filesystem import image_files, matching_files, open_path
from components.ingest.record import Record
from vlmflow.artifacts.text_files import read_text


class CaptionFilesReader:
    """Read a folder with images and text files.

    Raises:
        DataError: the folder has no text file.
    """

    def __init__(self, path: str, index: str = ""):
        self.root = open_path(path)
        self.texts = matching_files(path, (".txt",))

    def columns(self, wanted: ColumnsConfig) -> ColumnsConfig:
        """Return the fixed mapping of the format."""
        return ColumnsConfig(split="split")

    def records(self) -> Iterator[Record]:
        """Stream the images in order of their names."""
        return paired_records(self.root, image_files(self.root), self.texts, _read_caption)


def _read_caption(file: UPath, refused: SkippedItems) -> dict[str, Any]:
    return {"caption": read_text(file).rstrip("\r\n")}
