"""Rows of TRL's formats: images at their markers, boxes that move along, strips that a processor would crop."""

from typing import Any

import pytest
import torch
from PIL import Image

from vlmflow.inference.inputs import whole_image
from vlmflow.training.augment_config import MildAugmentConfig
from vlmflow.training.finetuning.trl_rows import AugmentingCollator, to_messages


class CentreCrop:
    image_mean = (0.5,) * 3
    do_center_crop = True


@pytest.mark.parametrize(
    ("text", "images", "kinds"),
    [
        ("Which?", 1, "image text"),
        ("<image> or <image>?", 2, "image text image text"),
        ("Both?", 2, "image image text"),
    ],
)
def test_images_stand_at_their_markers(text: str, images: int, kinds: str) -> None:
    (message,) = to_messages("user", text, images)
    assert " ".join(part["type"] for part in message["content"]) == kinds
    assert "<image>" not in "".join(part["text"] or "" for part in message["content"])


def test_boxes_are_moved_with_the_augmented_image() -> None:
    image = Image.new("RGB", (40, 20))
    image.paste((255, 255, 255), (10, 5, 20, 15))
    row: dict[str, Any] = {
        "images": [image], "is_text": False, "augment": True, "prompt": to_messages("user", "Where?", 1),
        "completion": to_messages("assistant", "<box>10,5,20,15</box>"),
    }  # fmt: skip
    torch.manual_seed(0)
    config = MildAugmentConfig(area=(0.4, 0.6), brightness=0, contrast=0, saturation=0)
    collator = AugmentingCollator(lambda rows: rows, CentreCrop(), config)
    (out,) = collator([row])
    x0, y0, x1, y1 = map(float, out["completion"][0]["content"][0]["text"].strip("</box>").split(","))
    assert (x0, y0, x1, y1) != (10, 5, 20, 15)
    bright = out["images"][0].convert("L").point(lambda level: 255 * (level > 127)).getbbox()
    assert all(abs(one - other) <= 1 for one, other in zip((x0, y0, x1, y1), bright, strict=True))
    (plain,) = collator([{**row, "augment": False}])
    assert plain["completion"][0]["content"][0]["text"] == "<box>10,5,20,15</box>"


def test_a_strip_is_padded_where_the_processor_would_crop_it() -> None:
    strip, photo = Image.new("RGB", (90, 10)), Image.new("RGB", (40, 30))
    assert whole_image(CentreCrop(), strip).size == (90, 90) and whole_image(None, strip) is strip
    assert whole_image(CentreCrop(), photo) is photo
