"""Decoding of encoded images to pixels, the same for all steps."""

import io

import numpy as np
from PIL import Image, ImageOps


def decode(data: bytes | None, at_least: int | None = None) -> Image.Image:
    """Return the image as viewers show it: EXIF orientation applied, transparency on white, first frame, RGB.

    Args:
        data: the encoded file.
        at_least: decode a larger JPEG at a smaller scale, neither side below this many pixels; None: in full.

    Raises:
        ValueError: `data` is empty.
        Exception: Pillow raises many types on a damaged file (OSError, SyntaxError, struct.error, ...).
    """
    if not data:
        raise ValueError("no image bytes")
    with Image.open(io.BytesIO(data)) as image:
        if at_least is not None:
            image.draft(None, (at_least, at_least))  # only affects JPEG; the mode is unchanged
        return to_rgb(apply_orientation(image))


def apply_orientation(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation. Skip images without such metadata: exif_transpose takes as long as decoding."""
    image.load()  # a PNG may have its metadata after the pixels
    has_metadata = image.format == "TIFF" or any(
        "exif" in str(key).lower() or "xmp" in str(key).lower() for key in image.info
    )
    return ImageOps.exif_transpose(image) if has_metadata else image


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB: 16 bits scaled to 8, floats as 0..1 or 0..255, transparency on white."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I"):  # 16 bits per pixel; `convert` would clip them to white
        scaled = np.clip(np.asarray(image) >> 8, 0, 255)
        return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
    if image.mode == "F":  # `convert` assumes 0..255 even if all values are within 0..1
        floats = np.nan_to_num(np.asarray(image))
        scaled = np.clip(floats * (255 if floats.max() <= 1 else 1), 0, 255)
        return Image.fromarray(scaled.round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def resize_square(image: Image.Image, side: int) -> np.ndarray:
    """The whole image squeezed to a square: (3, side, side) uint8, what the tiny family takes as it is."""
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
