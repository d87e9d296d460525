"""The `sroie` source: text lines in the layout of the ICDAR competitions, one text file per image.

    sroie/train/
      img/X0.jpg
      box/X0.txt       1,2,20,2,20,9,1,9,TOTAL 9.30

A line is a quadrilateral and its text, `x1,y1,x2,y2,x3,y3,x4,y4,TOTAL 9.30` (SROIE 2019, ICDAR 2015), or a rectangle
and its text, `x0, y0, x1, y1, "TOTAL"` (ICDAR 2013). The text `###` marks an illegible line. The text file is beside
its image or in another folder (`img`, `box`), and its name may begin with `gt_`.
"""

import re
from collections.abc import Iterator
from typing import Any

from upath import UPath

from components.ingest.annotation_files import SkippedItems, paired_records
from components.ingest.columns import ColumnsConfig
from components.ingest.filesystem import image_files, open_path
from components.ingest.record import Record
from vlmflow.artifacts.text_files import read_text, split_lines
from vlmflow.errors import DataError, RecordError

_NUMBER = re.compile(r"\s*-?\d+(\.\d+)?\s*")
ILLEGIBLE = "###"


class SroieReader:
    """Read a folder with images and text files.

    Raises:
        DataError: the folder has no text file.
    """

    def __init__(self, path: str, index: str = ""):
        self.root = open_path(path)
        self.texts = sorted(self.root.rglob("*.txt"), key=str)
        if not self.texts:
            raise DataError(f"ingest.path: {path!r}: no *.txt file found")

    def columns(self, wanted: ColumnsConfig) -> ColumnsConfig:
        """Return the fixed mapping of the format."""
        return ColumnsConfig(image="image", caption="", lines="lines", split="split")

    def records(self) -> Iterator[Record]:
        """Stream the images in order of their names."""
        return paired_records(self.root, image_files(self.root), self.texts, _read_lines, prefix="gt_")


def _read_lines(file: UPath, refused: SkippedItems) -> dict[str, Any]:
    text = read_text(file, otherwise="cp1252")  # some files of SROIE use it for a currency sign
    lines = []
    for number, line in enumerate(split_lines(text), 1):
        parts = line.split(",", 8)
        count = 8 if len(parts) == 9 and all(map(_is_number, parts[:8])) else 4
        parts = line.split(",", count)
        words = parts[count].strip() if len(parts) > count else ""
        if not line.strip():
            continue
        if words == ILLEGIBLE:
            refused.append(("lines", RecordError("illegible", f"{file.name}:{number}")))
        else:
            words = words[1:-1] if count == 4 and words[:1] == words[-1:] == '"' and len(words) > 1 else words
            lines.append({"box": [part.strip() for part in parts[:count]], "text": words})
    return {"lines": lines}


def _is_number(part: str) -> bool:
    return bool(_NUMBER.fullmatch(part))
