"""The mapping from the columns of a source to the columns of a pair."""

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from vlmflow.artifacts.dataset import IMAGE_MARKER
from vlmflow.artifacts.text_files import MAX_TEXT_BYTES
from vlmflow.config.nearest import nearest
from vlmflow.config.section import Section
from vlmflow.errors import DataError, RecordError

BoxFormat = Literal["xyxy", "xywh", "yolo"]
DEFAULT_CAPTION, DEFAULT_WIDTH, DEFAULT_HEIGHT = "caption", "width", "height"
OPTIONAL = {"caption": DEFAULT_CAPTION, "width": DEFAULT_WIDTH, "height": DEFAULT_HEIGHT}


class ColumnsConfig(Section):
    """The source's column of each value; "" if the source has none."""

    image: str = Field(default="image", min_length=1, description="Column of the image: bytes or a path.")
    caption: str = Field(
        default=DEFAULT_CAPTION,
        description="Column of the caption; each caption of a list makes a pair, also if the list is written as text. "
        "Empty makes captions from the regions' phrases or the lines' texts.",
    )
    boxes: str = Field(default="", description="Column of the boxes of objects; empty if there are none.")
    box_format: BoxFormat = Field(
        default="xyxy",
        description="Format of the boxes. `xyxy` and `xywh` are pixels of the upright image (EXIF orientation "
        "applied); "
        "`yolo` is centre and size, or the corners of a polygon, as fractions of width and height.",
    )
    lines: str = Field(default="", description="Column of the lines of text and their boxes; empty if there are none.")
    width: str = Field(
        default=DEFAULT_WIDTH,
        description="Column of the width, in pixels, of the image on which the boxes and lines were drawn, if the "
        "source states it. They are scaled if the image is a smaller or larger copy, and skipped if it is another.",
    )
    height: str = Field(default=DEFAULT_HEIGHT, description="Column of its height, in pixels.")
    label: str = Field(default="", description="Column of the image's label, or a list with a name for each box.")
    split: str = Field(default="", description="Column of the split; empty splits by `ingest.holdout`.")
    licence: str = Field(default="", description="Column of the licence; empty uses `ingest.licence`.")

    @model_validator(mode="after")
    def _check(self) -> "ColumnsConfig":
        if not (self.caption or self.boxes or self.lines):
            raise ValueError("caption is empty: set boxes or lines, from which captions are made")
        return self

    @property
    def mapped(self) -> dict[str, str]:
        """The mapping without its empty entries; width and height are used for boxes and lines only."""
        unused = {"box_format"} if self.boxes or self.lines else {"box_format", "width", "height"}
        return {key: column for key, column in self.model_dump().items() if column and key not in unused}

    def match_columns(self, available: list[str], path: str) -> "ColumnsConfig":
        """Return the mapping for a source with the columns `available`.

        The default columns of width and height may be missing, and that of the caption if boxes or lines are mapped:
        datasets of boxes or receipts have no captions.

        Raises:
            DataError: a mapped column does not exist.
        """
        for key, column in self.mapped.items():
            if column in available:
                continue
            if column == OPTIONAL.get(key) and (self.boxes or self.lines):
                return self.model_copy(update={key: ""}).match_columns(available, path)
            raise DataError(
                f"{path}: ingest.columns.{key}: no column {column!r}; {nearest(column, available)}, "
                f"all: {', '.join(available) or 'none'}"
            )
        return self


def text(value: Any, *, markers: bool = False) -> str:
    """Return the value of a column as text; null and NaN become "".

    Args:
        markers: accept the image marker, which a model takes for an image.

    Raises:
        RecordError: the value is a list, a dict or bytes, not valid Unicode, longer than 16 MiB, or contains NUL or an
            image marker.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, list | dict | bytes):
        raise RecordError("not text", f"{value!r:.80}")
    written = str(value).lower() if isinstance(value, bool) else str(value)
    try:
        size = len(written.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise RecordError("not text", f"not valid Unicode: {error.reason}") from None
    if size > MAX_TEXT_BYTES:
        raise RecordError("too many bytes", f"a text of {size} bytes, the limit is {MAX_TEXT_BYTES}")
    if not markers and IMAGE_MARKER in written:
        raise RecordError("image markers", f"{IMAGE_MARKER} in {written!r:.80}; a model would take it for an image")
    if (at := written.find("\0")) >= 0:
        raise RecordError("not text", f"character {at} is NUL")
    return written
