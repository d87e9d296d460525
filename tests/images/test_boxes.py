"""Boxes: every codec gives back what it was given, within the error that it states."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.tiny.configuration import TinyConfig
from vlmflow.images.boxes import CODECS, Box, format_box, transcode


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    width, height = draw(st.integers(8, 4000)), draw(st.integers(8, 4000))
    xs = sorted(round(draw(st.floats(0, width)), 6) for _ in range(2))  # rounded: areas must not underflow
    ys = sorted(round(draw(st.floats(0, height)), 6) for _ in range(2))
    return Box(xs[0], ys[0], xs[1], ys[1], width, height)


@pytest.mark.parametrize("name", CODECS)
@given(box=boxes())
def test_round_trip_is_within_the_stated_error(name: str, box: Box) -> None:
    codec = CODECS[name]
    found = codec.decode("before " + codec.encode(box) + " after", box.width, box.height)
    assert found is not None
    slack = 0.006 if name == "pixels" else 1e-6  # pixels state an error of half a hundredth of a pixel
    for given_, read, side in (
        (box.x0, found.x0, box.width),
        (box.y0, found.y0, box.height),
        (box.x1, found.x1, box.width),
        (box.y1, found.y1, box.height),
    ):
        assert abs(given_ - read) <= (codec.max_error * side if name != "pixels" else 0) + slack


@pytest.mark.parametrize("name", CODECS)
def test_text_without_a_box_decodes_to_none(name: str) -> None:
    assert CODECS[name].decode("I see nothing there", 64, 64) is None


def test_conventions_as_published() -> None:
    box = Box(100, 200, 300, 400, 1000, 1000)
    assert CODECS["qwen-vl"].encode(box) == "<box>(100,200),(300,400)</box>"
    assert CODECS["paligemma"].encode(box) == "<loc0204><loc0102><loc0409><loc0307>"  # y before x
    kosmos = CODECS["kosmos-2"].decode("<object><patch_index_0044><patch_index_0863></object>", 1, 1)
    assert kosmos is not None and (kosmos.x0, kosmos.y0) == (0.390625, 0.046875)


def test_the_demo_model_has_a_token_for_every_bin_of_its_convention() -> None:
    said = CODECS["tiny"].encode(Box(63.9, 0, 64, 64, 64, 64))
    assert said.startswith(f"<loc{TinyConfig().location_bins - 1}>")


@given(box=boxes(), width=st.integers(1, 500), height=st.integers(1, 500))
def test_iou_survives_resizing(box: Box, width: int, height: int) -> None:
    other = Box(box.x0 / 2, box.y0 / 2, box.x1, box.y1, box.width, box.height)
    assert box.resized(width, height).iou(other.resized(width, height)) == pytest.approx(box.iou(other), abs=1e-6)


def test_iou() -> None:
    a, b = Box(0, 0, 2, 2, 4, 4), Box(1, 1, 3, 3, 4, 4)
    assert a.iou(b) == pytest.approx(1 / 7)
    assert a.iou(a) == 1
    assert a.iou(Box(2, 2, 4, 4, 4, 4)) == 0
    assert Box(1, 1, 1, 1, 4, 4).iou(Box(1, 1, 1, 1, 4, 4)) == 0


def test_transcode_rewrites_every_box_and_nothing_else() -> None:
    text = f"here {format_box(Box(0, 0, 32, 32, 64, 64))} and {format_box(Box(32, 32, 64, 64, 64, 64))}."
    assert transcode(text, "tiny", 64, 64) == "here <loc00><loc00><loc32><loc32> and <loc32><loc32><loc63><loc63>."
