"""Encoded pictures to pixels: the one place where steps decode."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps


def decode(data: bytes | None, at_least: int | None = None) -> Image.Image:
    """The picture as people see it: upright by its EXIF orientation, transparency on white, first frame, RGB.

    Args:
        data: the encoded file.
        at_least: decode a larger JPEG at a smaller scale, neither side below this many pixels; None: in full.

    Raises:
        ValueError: there is no data.
        Exception: whatever Pillow raises on a damaged file (OSError, SyntaxError, struct.error, ...).
    """
    if not data:
        raise ValueError("no image bytes")
    with Image.open(io.BytesIO(data)) as picture:
        if at_least is not None:
            picture.draft(None, (at_least, at_least))  # only JPEG has it; the mode stays the file's own
        return to_rgb(apply_orientation(picture))


def apply_orientation(picture: Image.Image) -> Image.Image:
    """The picture turned as its metadata asks; most have none, and looking closer takes as long as decoding."""
    picture.load()  # a PNG may say it behind its pixels
    speaks = picture.format == "TIFF" or any(
        "exif" in str(key).lower() or "xmp" in str(key).lower() for key in picture.info
    )
    return ImageOps.exif_transpose(picture) if speaks else picture


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any mode to RGB: 16 bits scaled to 8, floats as 0..1 or 0..255, transparency laid on white."""
    if picture.mode == "RGB" and not picture.has_transparency_data:
        return picture
    if picture.mode.startswith("I"):  # 16 bits a pixel, which `convert` would clip to white
        scaled = np.clip(np.asarray(picture) >> 8, 0, 255)
        return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
    if picture.mode == "F":  # which `convert` takes for 0..255 even if all is within 0..1
        floats = np.nan_to_num(np.asarray(picture))
        scaled = np.clip(floats * (255 if floats.max() <= 1 else 1), 0, 255)
        return Image.fromarray(scaled.round().astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


def resize_square(picture: Image.Image, side: int) -> np.ndarray:
    """The whole picture squeezed to a square: (3, side, side) uint8, what the tiny family takes as it is."""
    return np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def decode_squares(encoded: Sequence[bytes], side: int) -> np.ndarray:
    """Decode and squeeze many pictures: (N, 3, side, side) uint8."""
    out = np.empty((len(encoded), 3, side, side), np.uint8)
    for i, data in enumerate(encoded):
        out[i] = resize_square(decode(data, at_least=side), side)
    return out
