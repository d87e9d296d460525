"""Text in pictures, masked: a score should say what a picture shows, not what is written on it.

A dual encoder that reads gives a high score to a caption that only repeats the picture's letters. So the
known lines of text are painted over before the picture is scored. Only known lines are: there is no text
detector here, and a picture without annotated lines is scored as it is.

Source: Maini et al. 2023, "T-MARS: Improving visual representations by circumventing text feature learning".
"""

import io
from typing import Any

import numpy as np
from PIL import Image

from vlmflow.images.decoding import decode

BORDER = 2  # px around a line, whose mean colour it is painted with


def mask(data: bytes, lines: list[dict[str, Any]] | None) -> bytes:
    """The picture with each of its `lines` (x0, y0, x1, y1 in px) painted over: a PNG; without lines, as it came."""
    if not lines:
        return data
    pixels = np.array(decode(data))
    height, width = pixels.shape[:2]
    for line in lines:
        x0, y0 = max(0, int(line["x0"])), max(0, int(line["y0"]))
        x1, y1 = min(width, int(np.ceil(line["x1"]))), min(height, int(np.ceil(line["y1"])))
        if x0 >= x1 or y0 >= y1:
            continue
        around = np.zeros((height, width), dtype=bool)
        around[max(0, y0 - BORDER) : y1 + BORDER, max(0, x0 - BORDER) : x1 + BORDER] = True
        around[y0:y1, x0:x1] = False
        edge = pixels[around] if around.any() else pixels[y0:y1, x0:x1].reshape(-1, 3)
        pixels[y0:y1, x0:x1] = np.median(edge, axis=0)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
