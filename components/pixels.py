"""Encoded pictures to arrays: the one place where training and evaluation decode."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps


def decode(encoded: bytes) -> Image.Image:
    """An RGB picture: EXIF orientation applied, transparency laid on white, the first frame of an animation."""
    picture = Image.open(io.BytesIO(encoded))
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("I;16", "I;16B", "I;16L", "I"):
        high = np.asarray(picture, np.float32)
        picture = Image.fromarray(np.clip(high / 257, 0, 255).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        ground = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(ground, picture)
    return picture.convert("RGB")


def squares(encoded: Sequence[bytes], side: int) -> np.ndarray:
    """Decode and squeeze pictures to a square.

    Returns:
        (N, 3, side, side) uint8, what the sketch family takes as it is.
    """
    out = np.empty((len(encoded), 3, side, side), np.uint8)
    for i, content in enumerate(encoded):
        picture = decode(content).resize((side, side), Image.Resampling.BILINEAR)
        out[i] = np.asarray(picture).transpose(2, 0, 1)
    return out
