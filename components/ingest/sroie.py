"""The `sroie` source: text lines in the layout of the ICDAR competitions, one text file per image.

    sroie/train/
      img/X0.jpg
      box/X0.txt       1,2,20,2,20,9,1,9,TOTAL 9.30

A line is a quadrilateral and its text, `x1,y1,x2,y2,x3,y3,x4,y4,TOTAL 9.30` (SROIE 2019, ICDAR 2015), or a rectangle
and its text, `x0, y0, x1, y1, "TOTAL"` or `x0 y0 x1 y1 "TOTAL"` (ICDAR 2013). The text `###` marks an illegible line.
The text file is beside its image or in another folder (`img`, `box`), and its name may begin with `gt_`.
"""

import codecs
import re
from collections.abc import Iterator
from typing import Any

from upath import UPath

from components.ingest.annotation_files import SkippedItems, paired_records
from components.ingest.columns import ColumnsConfig
from components.ingest.filesystem import image_files, open_path, relative_name
from components.ingest.record import Record
from vlmflow.artifacts.files import walk
from vlmflow.artifacts.text_files import check_encoding
from vlmflow.errors import DataError, RecordError

ILLEGIBLE = "###"
CORNER_NUMBERS, QUAD_NUMBERS = 4, 8
MORE_NUMBERS = 4  # so many more numbers before a text are corners of a polygon, not a text such as `1,234,567`
NOT_BOXES = ("entities", "key")  # folders of SROIE's tasks 2 and 3: texts and facts without boxes
_NUMBER = re.compile(r"\s*-?\d+(\.\d+)?\s*")
_SPACED = re.compile(r"\s*" + r"(-?\d+)\s+" * 4 + r'"(.*)"\s*')


class SroieReader:
    """Read a folder with images and text files.

    Raises:
        DataError: the folder has no text file with boxes.
    """

    def __init__(self, path: str, index: str = ""):
        self.root = open_path(path)
        texts = [file for file in walk(self.root) if file.suffix.lower() == ".txt"]
        self.texts = [file for file in texts if file.parent.name.lower() not in NOT_BOXES]
        if not self.texts:
            other = f"; {relative_name(texts[0], self.root)} has no boxes" if texts else ""
            raise DataError(f"ingest.path: {path!r}: no *.txt file with boxes found{other}")

    def columns(self, wanted: ColumnsConfig) -> ColumnsConfig:
        """Return the fixed mapping of the format."""
        return ColumnsConfig(image="image", caption="", lines="lines", split="split")

    def records(self) -> Iterator[Record]:
        """Stream the images in order of their names."""
        return paired_records(self.root, image_files(self.root), self.texts, _read_lines, prefix="gt_")


def _read_lines(file: UPath, refused: SkippedItems) -> dict[str, Any]:
    content = file.read_bytes()
    check_encoding(content)
    lines = []
    for number, raw in enumerate(content.removeprefix(codecs.BOM_UTF8).splitlines(), 1):
        at = f"{file.name}:{number}"
        try:
            if raw.strip():
                lines.append({**_parse_line(_decode_line(raw)), "at": at})
        except RecordError as reason:
            refused.append(("lines", RecordError(reason.kind, f"{at}: {reason.detail}" if reason.detail else at)))
    return {"lines": lines}


def _decode_line(raw: bytes) -> str:
    for encoding in ("utf-8", "cp1252"):  # some files of SROIE use the second for a currency sign
        try:
            if b"\0" not in raw:
                return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise RecordError("not text", "neither UTF-8 nor Windows-1252")


def _parse_line(line: str) -> dict[str, Any]:
    if spaced := _SPACED.fullmatch(line):  # the training files of ICDAR 2013
        numbers, words = list(spaced.groups()[:CORNER_NUMBERS]), spaced[CORNER_NUMBERS + 1]
    else:
        parts = line.split(",")
        leading = next((i for i, part in enumerate(parts) if not _NUMBER.fullmatch(part)), len(parts))
        if leading == QUAD_NUMBERS == len(parts):
            raise RecordError("no text", "8 numbers without a text")
        if leading >= QUAD_NUMBERS + MORE_NUMBERS and leading < len(parts):
            raise RecordError("invalid box", f"{leading} numbers before the text, expected 4 or 8")
        count = QUAD_NUMBERS if leading >= QUAD_NUMBERS else CORNER_NUMBERS
        *numbers, words = line.split(",", count) if len(parts) > count else [*parts, ""]
        words = words.strip()
        if count == CORNER_NUMBERS and words[:1] == words[-1:] == '"' and len(words) > 1:
            words = words[1:-1]
    if words == ILLEGIBLE:
        raise RecordError("illegible")
    return {"box": [number.strip() for number in numbers], "text": words}
