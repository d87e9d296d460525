"""Boxes in the texts of an image, while augmentation moves the image."""

from collections.abc import Sequence
from functools import partial

import torch

from vlmflow.images.boxes import find_boxes, transcode
from vlmflow.training.augment import Views

Size = tuple[int, int]  # width and height of an image, in pixels


def bounding_boxes(texts: Sequence[Sequence[str]], sizes: Sequence[Size]) -> torch.Tensor:
    """The rectangle around all boxes in the texts of each image, (N, 4) in −1 to 1; NaN where they have none."""
    bounds = torch.full((len(texts), 4), torch.nan)
    for i, (of_image, (width, height)) in enumerate(zip(texts, sizes, strict=True)):
        boxes = [box for text in of_image for box in find_boxes(text, width, height)]
        if boxes:
            corners = [min(box.x0 for box in boxes) / width, min(box.y0 for box in boxes) / height,
                       max(box.x1 for box in boxes) / width, max(box.y1 for box in boxes) / height]  # fmt: skip
            bounds[i] = 2 * torch.tensor(corners) - 1
    return bounds


def transcode_view(text: str, convention: str, size: Size, views: Views | None, row: int) -> str:
    """Rewrite the boxes of a dataset's text in `convention`, moved to the view of image `row` if there are views."""
    return transcode(text, convention, *size, move=partial(views.move, row) if views else None)
