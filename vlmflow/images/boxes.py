"""Boxes: one type in pixels, and a codec for each way in which models write a box as text.

Datasets write a box as `<box>12,5,40,33</box>`: absolute xyxy pixels of the image. A model learns and answers in the
convention that its processor declares; the codec converts between the two.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

_NUMBER = r"(-?\d+(?:\.\d+)?)"
CANONICAL = re.compile(f"<box>{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}</box>")


@dataclass(frozen=True)
class Box:
    """A rectangle in an image: corners in pixels, and the image's size in pixels."""

    x0: float
    y0: float
    x1: float
    y1: float
    width: int
    height: int

    @property
    def area(self) -> float:
        return max(0.0, self.x1 - self.x0) * max(0.0, self.y1 - self.y0)

    def resized(self, width: int, height: int) -> "Box":
        """Return the same box in the image resized to `width` × `height`."""
        x, y = width / self.width, height / self.height
        return Box(self.x0 * x, self.y0 * y, self.x1 * x, self.y1 * y, width, height)

    def iou(self, other: "Box") -> float:
        """Intersection over union; 0 where both are empty."""
        inner = Box(
            max(self.x0, other.x0),
            max(self.y0, other.y0),
            min(self.x1, other.x1),
            min(self.y1, other.y1),
            self.width,
            self.height,
        ).area
        union = self.area + other.area - inner
        return inner / union if union > 0 else 0.0


@dataclass(frozen=True)
class Codec:
    """How a family of models writes a box.

    `pattern` finds one; `encode(box) -> text`; `decode(text, width, height) -> Box`, or None if the text has no box: a
    parse failure never becomes a box at zero. `max_error` bounds the round-trip error of a corner, as a fraction of the
    image side.
    """

    pattern: re.Pattern[str]
    encode: Callable[[Box], str]
    decode: Callable[[str, int, int], Box | None]
    max_error: float


def _grid_codec(pattern: str, form: str, cells: int, *, centre: bool, order: str = "xyxy") -> Codec:
    """Return a codec of four integers on a grid of `cells` per side, decoded at the cell centre or the cell number."""
    finder, shift = re.compile(pattern), 0.5 if centre else 0.0

    def write(box: Box) -> str:
        scaled = (box.x0 / box.width, box.y0 / box.height, box.x1 / box.width, box.y1 / box.height)
        values = [min(cells - 1, max(0, int(v * cells) if centre else round(v * cells))) for v in scaled]
        if order == "yxyx":
            values = [values[1], values[0], values[3], values[2]]
        return form.format(*values)

    def read(text: str, width: int, height: int) -> Box | None:
        match = finder.search(text)
        if match is None:
            return None
        a, b, c, d = ((int(v) + shift) / cells for v in match.groups())
        if order == "yxyx":
            a, b, c, d = b, a, d, c
        return Box(a * width, b * height, c * width, d * height, width, height)

    return Codec(finder, write, read, (0.5 if centre else 1.0) / cells)


def _kosmos_codec() -> Codec:
    """Two patch tokens on a 32×32 grid: the cells of the corners, decoded at their centres."""
    finder = re.compile(r"<object><patch_index_(\d{4})><patch_index_(\d{4})></object>")

    def cell(x: float, y: float) -> int:
        return min(31, max(0, int(y * 32))) * 32 + min(31, max(0, int(x * 32)))

    def write(box: Box) -> str:
        first = cell(box.x0 / box.width, box.y0 / box.height)
        last = cell(box.x1 / box.width, box.y1 / box.height)
        return f"<object><patch_index_{first:04d}><patch_index_{last:04d}></object>"

    def read(text: str, width: int, height: int) -> Box | None:
        match = finder.search(text)
        if match is None:
            return None
        (y0, x0), (y1, x1) = (divmod(int(v), 32) for v in match.groups())
        x0, y0, x1, y1 = ((v + 0.5) / 32 for v in (x0, y0, x1, y1))
        return Box(x0 * width, y0 * height, x1 * width, y1 * height, width, height)

    return Codec(finder, write, read, 0.5 / 32)


def _pixel_codec() -> Codec:
    def read(text: str, width: int, height: int) -> Box | None:
        match = CANONICAL.search(text)
        return box_from_match(match, width, height) if match else None

    return Codec(CANONICAL, format_box, read, 0.005)


def box_from_match(match: re.Match[str], width: int, height: int) -> Box:
    """Return the box of a match of `CANONICAL`."""
    x0, y0, x1, y1 = map(float, match.groups())
    return Box(x0, y0, x1, y1, width, height)


def format_box(box: Box) -> str:
    """Write a box in the format of datasets, with corners rounded to a hundredth of a pixel."""
    return "<box>{},{},{},{}</box>".format(
        *(f"{v:.2f}".rstrip("0").rstrip(".") for v in (box.x0, box.y0, box.x1, box.y1))
    )


_L = r"<loc(\d{2})>"
_P = r"<loc(\d{4})>"
CODECS: dict[str, Codec] = {
    "pixels": _pixel_codec(),
    "tiny": _grid_codec(_L * 4, "<loc{:02d}><loc{:02d}><loc{:02d}><loc{:02d}>", 64, centre=True),
    "qwen-vl": _grid_codec(
        r"<box>\((\d+),(\d+)\),\((\d+),(\d+)\)</box>", "<box>({},{}),({},{})</box>", 1000, centre=False
    ),
    "paligemma": _grid_codec(_P * 4, "<loc{:04d}><loc{:04d}><loc{:04d}><loc{:04d}>", 1024, centre=True, order="yxyx"),
    "kosmos-2": _kosmos_codec(),
}


def find_boxes(text: str, width: int, height: int) -> list[Box]:
    """Every `<box>` of a dataset's text, in an image of `width` × `height`."""
    return [box_from_match(match, width, height) for match in CANONICAL.finditer(text)]


def transcode(text: str, convention: str, width: int, height: int, move: Callable[[Box], Box] | None = None) -> str:
    """Rewrite every `<box>` of a dataset's text, in an image of `width` × `height`, in `convention`.

    Args:
        move: changes each box before it is written, as augmentation changes the image.
    """

    def write(match: re.Match[str]) -> str:
        box = box_from_match(match, width, height)
        return CODECS[convention].encode(move(box) if move else box)

    return CANONICAL.sub(write, text)


def to_pixels(text: str, convention: str, width: int, height: int) -> str:
    """Rewrite every box that a model wrote in `convention` as a `<box>` in an image of `width` × `height`."""
    codec = CODECS[convention]

    def write(match: re.Match[str]) -> str:
        box = codec.decode(match.group(), width, height)
        assert box is not None  # the same pattern found it
        return format_box(box)

    return codec.pattern.sub(write, text)
