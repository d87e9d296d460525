"""Boxes and text lines as datasets write them, parsed into absolute xyxy pixels of the upright image.

The column of one row may hold

- a list of objects: `[{"label": "ace", "box": [x0, y0, x1, y1]}]`, or with named corners (see `CORNERS`);
- a list of boxes: `[[x0, y0, x1, y1], …]`, or a single box, whose label is in another column of the row;
- an object of lists, as in detection datasets on the Hugging Face hub: `{"bbox": [[…]], "category": […]}`;
- results of Label Studio, in per cent: `[{"x": 1, "y": 2, "width": 3, "height": 4, "rectanglelabels": ["ace"]}]`;
- any of these as text (in CSV): JSON, or Python's literals, as pandas writes them.

A box has 4 numbers, or is a polygon (8 or more numbers, or points), whose bounding box is used. What may be something
else is refused: rotated boxes, numbers with a score or a class, points with a third value.
"""

import math
from typing import Any

from components.ingest.columns import BoxFormat, text
from components.ingest.json_files import parse_literal
from vlmflow.errors import RecordError

Size = tuple[float, float]

# The plurals occur in objects of lists.
PHRASE_KEYS = ("phrase", "label", "category", "name", "text", "class", "phrases", "labels", "categories", "names")
TEXT_KEYS = ("text", "transcription", "words", "word", "label", "value", "texts", "transcriptions")
CATEGORY_KEYS = ("category", "label", "class", "name", "categories", "labels", "names")
POLYGON_KEYS = ("quad", "polygon", "points")
BOX_KEYS = ("box", "bbox", "xyxy", *POLYGON_KEYS, "boxes", "bboxes")
CORNERS: tuple[tuple[tuple[str, str, str, str], BoxFormat], ...] = (
    (("x0", "y0", "x1", "y1"), "xyxy"),
    (("x1", "y1", "x2", "y2"), "xyxy"),
    (("xmin", "ymin", "xmax", "ymax"), "xyxy"),
    (("left", "top", "right", "bottom"), "xyxy"),
    (("left", "top", "width", "height"), "xywh"),
    (("x", "y", "w", "h"), "xywh"),
    (("x", "y", "width", "height"), "xywh"),
)
ROTATION_KEYS = ("rotation", "angle", "theta", "image_rotation")
LABEL_STUDIO_KEYS = ("rectanglelabels", "polygonlabels", "ellipselabels", "keypointlabels", "brushlabels")
OVERHANG_PIXELS, OVERHANG_SHARE = 2.0, 0.01  # small overhangs are clipped, not refused
MIN_SIDE = 1.0  # pixels


def parse_boxes(value: Any) -> list[Any]:
    """Return the items of the boxes or lines column of one row, each in its original form.

    Raises:
        RecordError: `value` has none of the forms above, or a list of labels is not as long as the list of boxes.
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
            return [_from_label_studio(value)]  # a single item, not an object of lists
        for key, entries in lists.items():
            if key in (*PHRASE_KEYS, *TEXT_KEYS) and len(entries) != len(boxes):
                raise RecordError("invalid box", f"{len(boxes)} boxes, but {len(entries)} {key!r}")
        lists = {key: entries for key, entries in lists.items() if len(entries) == len(boxes)}
        return [{key: entries[i] for key, entries in lists.items()} for i in range(len(boxes))]
    if not isinstance(value, list):
        raise RecordError("invalid box", f"{value!r:.80}")
    return [value] if value and all(_is_number(entry) for entry in value) else [_from_label_studio(v) for v in value]


def field(item: Any, keys: tuple[str, ...]) -> Any:
    """Return the value of `item` under the first of `keys` that it has, or None."""
    return _first_value(item, keys) if isinstance(item, dict) else None


def text_field(item: Any, keys: tuple[str, ...]) -> str:
    """Return the text of `item` under the first of `keys` that it has, or "".

    Raises:
        RecordError: the value is not text.
    """
    return text(field(item, keys)).strip()


def parse_box(
    item: Any, width: int, height: int, box_format: BoxFormat, stated: Size | None = None
) -> tuple[dict[str, float], bool]:
    """Return the box of `item` as {x0, y0, x1, y1} in pixels, and whether it was clipped.

    A box may exceed the image by 2 pixels or 1 % of the side, whichever is larger; it is clipped to the image.

    Args:
        item: the box, in one of the forms above.
        width: of the upright image, pixels.
        height: of the upright image, pixels.
        box_format: format of 4 numbers without names.
        stated: (width, height) of the image according to the source, if it states them; the box is scaled from there.

    Raises:
        RecordError: it is not a box, is rotated, exceeds the image by more, or has a side below one pixel; or the
            image is not a larger or smaller copy of the stated one.
    """
    if isinstance(item, dict):
        if turned := next((key for key in ROTATION_KEYS if _is_number(item.get(key)) and item[key]), None):
            raise RecordError("rotated box", f"{turned} is {item[turned]!r:.20}; only upright boxes can be used")
        if (shape := item.get("shape_type", "polygon")) not in ("rectangle", "polygon"):  # of LabelMe
            raise RecordError("invalid box", f"shape_type is {shape!r:.20}; only rectangle and polygon are read")
        stated = stated_size(item.get("original_width"), item.get("original_height")) or stated
    x_scale, y_scale = _scale(stated, (width, height))
    box, in_fractions = _to_xyxy(item, box_format)
    if in_fractions:
        x_scale, y_scale = width, height
    x0, y0, x1, y1 = box[0] * x_scale, box[1] * y_scale, box[2] * x_scale, box[3] * y_scale
    spare_x, spare_y = (max(OVERHANG_PIXELS, OVERHANG_SHARE * side) for side in (width, height))
    if x0 < -spare_x or y0 < -spare_y or x1 > width + spare_x or y1 > height + spare_y:
        raise RecordError("outside the image", f"{_format((x0, y0, x1, y1))} in an image of {width}×{height}")
    inside = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    if inside[2] - inside[0] < MIN_SIDE or inside[3] - inside[1] < MIN_SIDE:
        unit = "fractions of width and height" if in_fractions else f"pixels, {box_format}"
        raise RecordError(
            "empty box", f"{_format((x0, y0, x1, y1))} in an image of {width}×{height}; boxes are in {unit}"
        )
    return dict(zip(("x0", "y0", "x1", "y1"), inside, strict=True)), inside != (x0, y0, x1, y1)


def stated_size(width: Any, height: Any) -> Size | None:
    """Return the size of an image as the source states it, or None if it states none: null, 0 or no number."""
    try:
        size = float(width), float(height)
    except (TypeError, ValueError):
        return None
    return size if min(size) > 0 and all(map(math.isfinite, size)) else None


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


def _scale(stated: Size | None, size: Size) -> Size:
    """Return the factors from the stated image to the image of `size`, a copy of it up to rounding of the sides."""
    if stated is None or stated == size:
        return 1.0, 1.0
    least, most = zip(*(((side - 1) / of, (side + 1) / of) for side, of in zip(size, stated, strict=True)), strict=True)
    if max(least) > min(most):
        turned = " (the EXIF orientation turns it)" if stated == size[::-1] else ""
        raise RecordError(
            "another image size",
            f"the source states {stated[0]:g}×{stated[1]:g}, the image is {size[0]:g}×{size[1]:g}{turned}",
        )
    return size[0] / stated[0], size[1] / stated[1]


def _from_label_studio(item: Any) -> Any:
    """Return a result of Label Studio with its corners as fractions of the sides; any other item as it is."""
    if not isinstance(item, dict):
        return item
    if isinstance(item.get("value"), dict):  # the full export nests them
        item = {**item, **item["value"]}
    kind = next((key for key in LABEL_STUDIO_KEYS if key in item), "labels" if "original_width" in item else "")
    if not kind:
        return item
    names = item.get(kind)
    known = {key: item[key] for key in (*ROTATION_KEYS, "original_width", "original_height") if key in item}
    known["label"] = names[0] if isinstance(names, list) and len(names) == 1 else names
    if all(_is_number(item.get(key)) for key in ("x", "y", "width", "height")):
        x, y, width, height = (item[key] / 100 for key in ("x", "y", "width", "height"))
        return {**known, "fractions": [x, y, x + width, y + height]}
    points = item.get("points")
    if isinstance(points, list) and all(isinstance(p, list) and all(map(_is_number, p)) for p in points):
        return {**known, "fractions": [[number / 100 for number in point] for point in points]}
    return {**known, "box": None}


def _to_xyxy(item: Any, box_format: BoxFormat) -> tuple[tuple[float, float, float, float], bool]:
    """Return the corners of `item`, and whether they are fractions of width and height."""
    box, polygon, fractions = item, box_format == "yolo", box_format == "yolo"
    if isinstance(item, dict):
        box = _first_value(item, ("fractions", *BOX_KEYS))
        polygon = polygon or _first_value(item, ("box", "bbox", "xyxy")) is None
        if "fractions" in item:
            box_format, fractions = "xyxy", True
        elif box is None or isinstance(box, dict):
            box, box_format = _find_corners(box or item)
    numbers = [_to_number(entry) for entry in _flatten(box)]
    if not fractions and numbers and max(map(abs, numbers)) <= 1:
        raise RecordError("empty box", f"{numbers!r:.80}: no number is above 1; boxes are in pixels, not fractions")
    if len(numbers) == 4 and not _is_point_list(box):
        x, y, a, b = numbers
        if box_format == "yolo":
            return (x - a / 2, y - b / 2, x + a / 2, y + b / 2), True
        return ((x, y, x + a, y + b) if box_format == "xywh" else (x, y, a, b)), fractions
    if len(numbers) % 2 or len(numbers) < (4 if _is_point_list(box) else 6 if polygon else 8):
        raise RecordError("invalid box", f"{len(numbers)} numbers in {box!r:.80}")
    xs, ys = numbers[::2], numbers[1::2]
    return (min(xs), min(ys), max(xs), max(ys)), fractions


def _find_corners(mapping: dict[str, Any]) -> tuple[list[Any], BoxFormat]:
    for keys, box_format in CORNERS:
        if all(key in mapping for key in keys):
            return [mapping[key] for key in keys], box_format
    names = ", ".join(str(key) for key, value in mapping.items() if value is not None and key != "at")
    raise RecordError("invalid box", f"no known corner names among {names or 'no keys'}")


def _first_value(mapping: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return next((mapping[key] for key in keys if mapping.get(key) is not None), None)


def _flatten(box: Any) -> list[Any]:
    if not isinstance(box, list):
        raise RecordError("invalid box", f"{box!r:.80}")
    lengths = {len(entry) if isinstance(entry, list) else 1 for entry in box}
    if lengths not in ({1}, {2}) and any(length < 6 or length % 2 for length in lengths):  # points, or whole polygons
        raise RecordError("invalid box", f"neither numbers nor points of two numbers: {box!r:.80}")
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
