"""Boxes as data sets write them, read into absolute xyxy pixels of the picture as it is seen.

One row's column may hold

- a list of mappings: `[{"label": "ace", "box": [x0, y0, x1, y1]}]`, or with the corners by name;
- a list of boxes: `[[x0, y0, x1, y1], …]`, or one box alone, whose words stand elsewhere in the row;
- a mapping of lists, as detection sets on the Hugging Face hub do: `{"bbox": [[…]], "category": […]}`;
- any of these as JSON text (in CSV).

A box is 4 numbers, or the corners of a polygon (8 numbers or pairs), of which the bounds are taken.
"""

import json
import math
from typing import Any

from components.ingest.columns import BoxFormat, text
from vlmflow.errors import RecordError

# The plurals are of mappings of lists.
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
OVERHANG_PIXELS, OVERHANG_SHARE = 2.0, 0.01  # annotators' slips that are cut off rather than refused
MIN_SIDE = 1.0  # pixels


def parse_boxes(value: Any) -> list[Any]:
    """Return the entries of one row's boxes or lines, each still as it was written.

    Raises:
        RecordError: `value` is in none of the forms above.
    """
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError as error:
            raise RecordError("not a box", f"not JSON: {error}") from None
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return []
    if isinstance(value, dict):
        lists = {key: entries for key, entries in value.items() if isinstance(entries, list)}
        boxes = _first_value(lists, BOX_KEYS)
        if boxes is None or (boxes and not isinstance(boxes[0], list | dict)):
            return [value]  # one mapping, not a mapping of lists
        lists = {key: entries for key, entries in lists.items() if len(entries) == len(boxes)}
        return [{key: entries[i] for key, entries in lists.items()} for i in range(len(boxes))]
    if not isinstance(value, list):
        raise RecordError("not a box", f"{value!r:.80}")
    return [value] if value and all(_is_number(entry) for entry in value) else value


def text_field(item: Any, keys: tuple[str, ...]) -> str:
    """Return what `item` says of itself under the first of `keys` it has, or "".

    Raises:
        RecordError: that is no text.
    """
    return text(_first_value(item, keys)).strip() if isinstance(item, dict) else ""


def parse_box(item: Any, width: int, height: int, box_format: BoxFormat) -> tuple[dict[str, float], bool]:
    """Return `item`'s box as {x0, y0, x1, y1} pixels, and whether an overhang was cut off.

    A box may reach over the edge by 2 pixels or 1 % of the side, whichever is more; that much is cut off.

    Raises:
        RecordError: it is no box, reaches further outside of the picture, or is thinner than a pixel.
    """
    box = _to_xyxy(item, box_format)
    if box_format == "yolo":  # shares of the sides
        box = (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
    x0, y0, x1, y1 = box
    spare_x, spare_y = (max(OVERHANG_PIXELS, OVERHANG_SHARE * side) for side in (width, height))
    if x0 < -spare_x or y0 < -spare_y or x1 > width + spare_x or y1 > height + spare_y:
        raise RecordError("outside the picture", f"{_format(box)} in a picture of {width}×{height}")
    inside = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    if inside[2] - inside[0] < MIN_SIDE or inside[3] - inside[1] < MIN_SIDE:
        unit = "shares of its sides" if box_format == "yolo" else f"pixels, {box_format}"
        raise RecordError("no area", f"{_format(box)} in a picture of {width}×{height}; boxes are in {unit}")
    return dict(zip(("x0", "y0", "x1", "y1"), inside, strict=True)), inside != box


def reading_order(regions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort by rows from the top, each from left to right."""
    return [region for row in group_lines(regions) for region in row]


def group_lines(regions: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Group by rows from the top, each from left to right; a row is what stands beside its topmost box."""
    ordered: list[list[dict[str, Any]]] = []
    rest = sorted(regions, key=lambda region: (region["y0"], region["x0"]))
    while rest:
        row = [region for region in rest if (region["y0"] + region["y1"]) / 2 <= rest[0]["y1"]]
        ordered.append(sorted(row, key=lambda region: region["x0"]))
        rest = [region for region in rest if all(region is not placed for placed in row)]
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
        raise RecordError("not a box", f"{len(numbers)} numbers in {box!r:.80}")
    xs, ys = numbers[::2], numbers[1::2]
    return min(xs), min(ys), max(xs), max(ys)


def _find_corners(mapping: dict[str, Any]) -> tuple[list[Any], BoxFormat]:
    for keys, box_format in CORNERS:
        if all(key in mapping for key in keys):
            return [mapping[key] for key in keys], box_format
    raise RecordError("not a box", f"no corners among {', '.join(map(str, mapping)) or 'no keys'}")


def _first_value(mapping: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return next((mapping[key] for key in keys if mapping.get(key) is not None), None)


def _flatten(box: Any) -> list[Any]:
    if not isinstance(box, list):
        raise RecordError("not a box", f"{box!r:.80}")
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
        raise RecordError("not a box", f"{value!r:.80} is not a number")
    return number


def _format(box: tuple[float, float, float, float]) -> str:
    return "[" + ", ".join(f"{number:g}" for number in box) + "]"
