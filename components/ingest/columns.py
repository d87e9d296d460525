"""The mapping from a source's columns to what a pair holds."""

import difflib
import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from vlmflow.errors import DataError, RecordError

BoxFormat = Literal["xyxy", "xywh", "yolo"]
DEFAULT_CAPTION = "caption"


@dataclass(frozen=True, kw_only=True)
class ColumnsConfig:
    """Which column of the source holds what; "" where there is none.

    Boxes are in pixels of the picture as it is seen, that is with its EXIF orientation applied; those of
    `box_format` yolo are centre and size (or corners of a polygon) as shares of its width and height.
    `caption` may hold a list of captions: each makes a pair. Where it is "", captions are made from the
    regions' phrases or the lines' texts. `label` may hold a list with a name for each box instead.
    """

    image: str = "image"
    caption: str = DEFAULT_CAPTION
    boxes: str = ""
    box_format: BoxFormat = "xyxy"
    lines: str = ""
    label: str = ""
    split: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        if not self.image:
            raise ValueError("columns.image must name the column of the pictures")
        if not (self.caption or self.boxes or self.lines):
            raise ValueError("columns.caption is empty: map columns.boxes or columns.lines to make captions from")

    @property
    def mapped(self) -> dict[str, str]:
        """The mapping without its empty entries."""
        return {key: column for key, column in asdict(self).items() if column and key != "box_format"}

    def found_in(self, there: list[str], path: str) -> "ColumnsConfig":
        """Return the mapping for a source with the columns `there`.

        A caption column that only the default names may be missing where boxes or lines are mapped:
        data sets of boxes or receipts have none.

        Raises:
            DataError: a mapped column is not there.
        """
        for key, column in self.mapped.items():
            if column in there:
                continue
            if key == "caption" and column == DEFAULT_CAPTION and (self.boxes or self.lines):
                return replace(self, caption="").found_in(there, path)
            near = difflib.get_close_matches(column, there, n=1, cutoff=0)
            nearest = f"the nearest is {near[0]!r}, " if near else ""
            raise DataError(
                f"{path}: ingest.columns.{key}: no column {column!r}; {nearest}there: {', '.join(there) or 'none'}"
            )
        return self


def text(value: Any) -> str:
    """Return a column's value as text; null is "".

    Raises:
        RecordError: it is a list or a mapping, or not valid Unicode.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, list | dict | bytes):
        raise RecordError("not text", f"{value!r:.80}")
    written = str(value).lower() if isinstance(value, bool) else str(value)
    try:
        written.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RecordError("not text", f"not valid Unicode: {error.reason}") from None
    return written
