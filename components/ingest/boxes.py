"""Boxes and text lines as datasets write them, parsed into absolute xyxy pixels of the upright image.

The column of one row may hold

- a list of objects: `[{"label": "ace", "box": [x0, y0, x1, y1]}]`, or with named corners (see `CORNERS`);
- a list of boxes: `[[x0, y0, x1, y1], …]`, or a single box, whose label is in another column of the row;
- an object of lists, as in detection datasets on the Hugging Face hub: `{"bbox": [[…]], "category": […]}`;
- any of these as text (in CSV): JSON, or Python's literals, as pandas writes them.

A box has 4 numbers, or is a polygon (8 or more numbers, or points), whose bounding box is used.
"""

import math
from typing import Any

from components.ingest.columns import BoxFormat, text
from components.ingest.json_files import parse_literal
from vlmflow.errors import RecordError

# The plurals occur in objects of lists.
PHRASE_KEYS = ("phrase", "label", "category", "name", "text", "class", "phrases", "labels", "categories", "names")
TEXT_KEYS = ("text", "transcription", "words", "word", "label", "value", "texts", "transcriptions")
CATEGORY_KEYS = ("category", "label", "class", "name", "categories", "labels", "names")
BOX_KEYS = ("box", "bbox", "xyxy", "quad", "polygon", "points", "boxes", "bboxes")
CORNERS: tuple[tuple[tuple[str, str, str, str], BoxFormat], ...] = (
    (("x0", "y0", "x1", "y1"), "xyxy"),
    (("x1", "y1", "x2", "y2"), "xyxy"),
    (("xmin", "ymin", "xmax", "ymax"), "xyxy"),
    (("left", "top", "right", "bottom"), "xyxy"),
    (("left", "top", "width", "height"), "xywh"),
    (("x", "y", "w", "h"), "xywh"),
    (("x", "y", "width", "height"), "xywh"),
)
OVERHANG_PIXELS, OVERHANG_SHARE = 2.0, 0.01  # small overhangs are clipped, not refused
MIN_SIDE = 1.0  # pixels


def parse_boxes(value: Any) -> list[Any]:
    """Return the items of the boxes or lines column of one row, each in its original form.

    Raises:
        RecordError: `value` has none of the forms above.
    """
    if isinstance(value, str) and value.strip():
        try:
            value = parse_literal(value)
        except RecordError as reason:
            raise RecordError("invalid box", reason.detail) from None
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return []
    if isinstance(value, dict):
        lists = {key: entries for key, entries in value.items() if isinstance(entries, list)}
        boxes = _first_value(lists, BOX_KEYS)
        if boxes is None or (boxes and not isinstance(boxes[0], list | dict)):
            return [value]  # a single item, not an object of lists
        lists = {key: entries for key, entries in lists.items() if len(entries) == len(boxes)}
        return [{key: entries[i] for key, entries in lists.items()} for i in range(len(boxes))]
    if not isinstance(value, list):
        raise RecordError("invalid box", f"{value!r:.80}")
    return [value] if value and all(_is_number(entry) for entry in value) else value


def text_field(item: Any, keys: tuple[str, ...]) -> str:
    """Return the text of `item` under the first of `keys` that it has, or "".

    Raises:
        RecordError: the value is not text.
    """
    return text(_first_value(item, keys)).strip() if isinstance(item, dict) else ""


def parse_box(item: Any, width: int, height: int, box_format: BoxFormat) -> tuple[dict[str, float], bool]:
    """Return the box of `item` as {x0, y0, x1, y1} in pixels, and whether it was clipped.

    A box may exceed the image by 2 pixels or 1 % of the side, whichever is larger; it is clipped to the image.

    Raises:
        RecordError: it is not a box, exceeds the image by more, or has a side below one pixel.
    """
    box = _to_xyxy(item, box_format)
    if box_format == "yolo":  # fractions of width and height
        box = (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
    x0, y0, x1, y1 = box
    spare_x, spare_y = (max(OVERHANG_PIXELS, OVERHANG_SHARE * side) for side in (width, height))
    if x0 < -spare_x or y0 < -spare_y or x1 > width + spare_x or y1 > height + spare_y:
        raise RecordError("outside the image", f"{_format(box)} in an image of {width}×{height}")
    inside = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    if inside[2] - inside[0] < MIN_SIDE or inside[3] - inside[1] < MIN_SIDE:
        unit = "fractions of width and height" if box_format == "yolo" else f"pixels, {box_format}"
        raise RecordError("empty box", f"{_format(box)} in an image of {width}×{height}; boxes are in {unit}")
    return dict(zip(("x0", "y0", "x1", "y1"), inside, strict=True)), inside != box


def reading_order(regions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort by rows from top to bottom, each row from left to right."""
    return [region for row in group_lines(regions) for region in row]


def group_lines(regions: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Group into rows from top to bottom, each sorted from left to right.

    A row holds the boxes whose centre is above the bottom of its topmost box.
    """
    ordered: list[list[dict[str, Any]]] = []
    rest = sorted(regions, key=lambda region: (region["y0"], region["x0"]))
    while rest:
        row = [region for region in rest if (region["y0"] + region["y1"]) / 2 <= rest[0]["y1"]]
        ordered.append(sorted(row, key=lambda region: region["x0"]))
        rest = [region for region in rest if all(region is not member for member in row)]
    return ordered


def _to_xyxy(item: Any, box_format: BoxFormat) -> tuple[float, float, float, float]:
    box = item
    if isinstance(item, dict):
        box = _first_value(item, BOX_KEYS)
        if box is None or isinstance(box, dict):
            box, box_format = _find_corners(box or item)
    numbers = [_to_number(entry) for entry in _flatten(box)]
    if len(numbers) == 4 and not _is_point_list(box):
        x, y, a, b = numbers
        if box_format == "yolo":
            return x - a / 2, y - b / 2, x + a / 2, y + b / 2
        return (x, y, x + a, y + b) if box_format == "xywh" else (x, y, a, b)
    if len(numbers) < 4 or len(numbers) % 2:
        raise RecordError("invalid box", f"{len(numbers)} numbers in {box!r:.80}")
    xs, ys = numbers[::2], numbers[1::2]
    return min(xs), min(ys), max(xs), max(ys)


def _find_corners(mapping: dict[str, Any]) -> tuple[list[Any], BoxFormat]:
    for keys, box_format in CORNERS:
        if all(key in mapping for key in keys):
            return [mapping[key] for key in keys], box_format
    raise RecordError("invalid box", f"no known corner names among {', '.join(map(str, mapping)) or 'no keys'}")


def _first_value(mapping: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return next((mapping[key] for key in keys if mapping.get(key) is not None), None)


def _flatten(box: Any) -> list[Any]:
    if not isinstance(box, list):
        raise RecordError("invalid box", f"{box!r:.80}")
    return [number for entry in box for number in (entry if isinstance(entry, list) else [entry])]


def _is_point_list(box: Any) -> bool:
    return bool(box) and isinstance(box[0], list)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _to_number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or isinstance(value, bool):
        raise RecordError("invalid box", f"{value!r:.80} is not a number")
    return number


def _format(box: tuple[float, float, float, float]) -> str:
    return "[" + ", ".join(f"{number:g}" for number in box) + "]"
