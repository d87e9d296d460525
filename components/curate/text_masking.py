"""Masking of text in images, so that a score depends on what an image shows and not on the text in it.

A dual encoder that can read gives a high score to a caption that only repeats the text in the image. So annotated lines
of text are painted over before an image is scored. There is no text detector: images without annotated lines are
scored unchanged.

Source: Maini et al. 2023, "T-MARS: Improving visual representations by circumventing text feature learning".
"""

import io
from typing import Any

import numpy as np
from PIL import Image

from vlmflow.images.decoding import decode

BORDER = 2  # px around a line; its median colour fills the line


def mask_lines(data: bytes, lines: list[dict[str, Any]] | None) -> bytes:
    """Return the image as PNG with its `lines` (x0, y0, x1, y1 in px) painted over; unchanged without lines."""
    if not lines:
        return data
    pixels = np.array(decode(data))
    height, width = pixels.shape[:2]
    for line in lines:
        x0, y0 = max(0, int(line["x0"])), max(0, int(line["y0"]))
        x1, y1 = min(width, int(np.ceil(line["x1"]))), min(height, int(np.ceil(line["y1"])))
        if x0 >= x1 or y0 >= y1:
            continue
        border = np.zeros((height, width), dtype=bool)
        border[max(0, y0 - BORDER) : y1 + BORDER, max(0, x0 - BORDER) : x1 + BORDER] = True
        border[y0:y1, x0:x1] = False
        edge = pixels[border] if border.any() else pixels[y0:y1, x0:x1].reshape(-1, 3)
        pixels[y0:y1, x0:x1] = np.median(edge, axis=0)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
