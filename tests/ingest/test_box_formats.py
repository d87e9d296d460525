from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.ingest import boxes
from vlmflow.errors import RecordError

WIDTH, HEIGHT = 100, 60


@pytest.mark.parametrize(
    "item",
    [
        [10, 20, 30, 50],
        {"box": [10, 20, 30, 50]},
        {"bbox": ["10", "20", "30", "50"]},
        {"box": [10, 20, 30, 20, 30, 50, 10, 50]},
        {"points": [[10, 20], [30, 20], [30, 50], [10, 50]]},
        {"polygon": [[30, 50], [10, 20]]},
        {"x0": 10, "y0": 20, "x1": 30, "y1": 50},
        {"x1": 10, "y1": 20, "x2": 30, "y2": 50},
        {"box": {"xmin": 10, "ymin": 20, "xmax": 30, "ymax": 50}},
        {"x": 10, "y": 20, "width": 20, "height": 30},
        {"left": 10, "top": 20, "width": 20, "height": 30},
    ],
)
def test_forms_of_one_box(item: Any) -> None:
    assert boxes.parse_box(item, WIDTH, HEIGHT, "xyxy") == ({"x0": 10, "y0": 20, "x1": 30, "y1": 50}, False)


def test_xywh_is_for_bare_numbers_only() -> None:
    expected = {"x0": 10, "y0": 20, "x1": 30, "y1": 50}
    assert boxes.parse_box([10, 20, 20, 30], WIDTH, HEIGHT, "xywh")[0] == expected
    assert boxes.parse_box({"x0": 10, "y0": 20, "x1": 30, "y1": 50}, WIDTH, HEIGHT, "xywh")[0] == expected


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (None, 0), ("", 0), (float("nan"), 0), ([], 0), ("[]", 0),
        ([1, 2, 3, 4], 1),
        ([[1, 2, 3, 4], [1, 2, 3, 5]], 2),
        ("[[1, 2, 3, 4]]", 1),
        ({"label": "a", "box": [1, 2, 3, 4]}, 1),
        ({"bbox": [[1, 2, 3, 4], [2, 3, 4, 5]], "category": ["a", "b"], "area": [1]}, 2),
        ({"bbox": [], "category": []}, 0),
    ],
)  # fmt: skip
def test_forms_of_a_rows_boxes(value: Any, count: int) -> None:
    assert len(boxes.parse_boxes(value)) == count


def test_an_object_of_lists_keeps_the_label_of_each_box() -> None:
    items = boxes.parse_boxes({"bbox": [[1, 2, 3, 4], [2, 3, 4, 5]], "category": ["a", 0]})
    assert [boxes.text_field(item, boxes.PHRASE_KEYS) for item in items] == ["a", "0"]


@pytest.mark.parametrize(
    ("item", "kind"),
    [
        ([0, 0, 110, 10], "outside the image"),
        ([-3, 0, 10, 10], "outside the image"),
        ([30, 10, 20, 40], "empty box"),
        ([0.1, 0.2, 0.5, 0.6], "empty box"),
        ([101, 10, 102, 40], "empty box"),
        ([1, 2, 3], "invalid box"),
        ([1, 2, 3, float("inf")], "invalid box"),
        ([1, 2, True, 4], "invalid box"),
        ({"label": "cat"}, "invalid box"),
        ("1 2 3 4", "invalid box"),
        (None, "invalid box"),
    ],
)
def test_invalid_boxes(item: Any, kind: str) -> None:
    with pytest.raises(RecordError) as caught:
        boxes.parse_box(item, WIDTH, HEIGHT, "xyxy")
    assert caught.value.kind == kind


@given(st.lists(st.floats(-200, 300), min_size=4, max_size=4), st.integers(1, 400), st.integers(1, 400))
def test_a_valid_box_is_clipped_by_at_most_the_allowed_overhang(box: list[float], width: int, height: int) -> None:
    try:
        place, clipped = boxes.parse_box(box, width, height, "xyxy")
    except RecordError:
        return
    assert 0 <= place["x0"] < place["x1"] <= width and 0 <= place["y0"] < place["y1"] <= height
    moved = [abs(a - b) for a, b in zip(place.values(), box, strict=True)]
    assert max(moved) <= max(2, 0.01 * max(width, height))
    assert clipped == (max(moved) > 0)


def test_reading_order_goes_by_rows() -> None:
    def region(name: str, *box: int) -> dict[str, Any]:
        return {"phrase": name, **dict(zip(("x0", "y0", "x1", "y1"), box, strict=True))}

    regions = [
        region("d", 0, 40, 20, 55),
        region("b", 30, 1, 50, 20),
        region("a", 0, 4, 20, 24),
        region("c", 60, 6, 80, 26),
    ]
    assert [one["phrase"] for one in boxes.reading_order(regions)] == ["a", "b", "c", "d"]


def test_the_image_marker_in_a_phrase_or_a_line_is_refused() -> None:
    for keys in (boxes.PHRASE_KEYS, boxes.TEXT_KEYS):
        with pytest.raises(RecordError, match="image markers"):
            boxes.text_field({"text": "the <image> tag", "box": [1, 2, 3, 4]}, keys)
