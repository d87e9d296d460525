"""Decoding of encoded images to pixels: the one place where files are opened, the same for all steps.

Only raster formats with a signature are opened. Others run a program (EPS) or a system library (WMF).
"""

import hashlib
import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

Image.init()
_RASTER = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "PSD")
FORMATS = tuple(name for name in _RASTER if name in Image.OPEN)
TGA_END = b"TRUEVISION-XFILE.\0"  # a TGA file has its signature at its end, if it has one
IMAGE_SUFFIXES = frozenset(
    suffix for suffix, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO") or suffix == ".tga"
)  # an MPO file is a JPEG with more images behind it


def open_image(data: bytes | None) -> Image.Image:
    """Open an encoded image, without decoding its pixels.

    Raises:
        ValueError: `data` is empty.
        UnidentifiedImageError: it is in none of the supported formats, or its header is damaged.
        Image.DecompressionBombError: it has more pixels than `Image.MAX_IMAGE_PIXELS`. A JPEG may have more, because
            it can be decoded at a smaller scale; `load_upright` checks what is decoded.
        Exception: Pillow raises many types on a damaged file.
    """
    if not data:
        raise ValueError("no image bytes")
    try:
        if data.startswith(b"\xff\xd8\xff"):
            return JpegImageFile(io.BytesIO(data))  # Image.open checks the number of pixels in full scale
        image = Image.open(io.BytesIO(data), formats=[*FORMATS, *(["TGA"] if data.endswith(TGA_END) else [])])
    except SyntaxError as error:
        raise UnidentifiedImageError(f"damaged JPEG header: {error}") from None
    except Image.DecompressionBombWarning as warning:  # where warnings are errors
        raise Image.DecompressionBombError(str(warning)) from None
    check_pixels(*image.size)
    return image


def check_pixels(width: int, height: int) -> None:
    """Raise DecompressionBombError if an image of this size has more pixels than `Image.MAX_IMAGE_PIXELS`."""
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and width * height > most:
        raise Image.DecompressionBombError(f"{width}×{height} pixels, at most {most:,} are decoded")


def decode(data: bytes | None, at_least: int | None = None) -> Image.Image:
    """Return the image as viewers show it: EXIF orientation applied, transparency on white, first frame, RGB.

    Args:
        data: the encoded file.
        at_least: decode a larger JPEG at a smaller scale, neither side below this many pixels; None: in full.

    Raises:
        ValueError: `data` is empty.
        Image.DecompressionBombError: more pixels than `Image.MAX_IMAGE_PIXELS` would be decoded.
        Exception: Pillow raises many types on a damaged file (OSError, SyntaxError, struct.error, ...).
    """
    with open_image(data) as image:
        if at_least is not None:
            image.draft(None, (at_least, at_least))  # only affects JPEG; the mode is unchanged
        return to_rgb(load_upright(image))


def pixel_digest(data: bytes | None) -> bytes | None:
    """Return a 128-bit hash of the size and pixels of the decoded image; None if it cannot be decoded in full."""
    image = decode_or_none(data)
    if image is None:
        return None
    return hashlib.blake2b(image.tobytes(), digest_size=16, key=repr(image.size).encode()).digest()


def decode_or_none(data: bytes | None, at_least: int | None = None) -> Image.Image | None:
    """Return the decoded image as `decode` does, or None if it cannot be decoded in full."""
    try:
        return decode(data, at_least)
    except MemoryError:
        raise
    except Exception:  # Pillow raises many types on a damaged file
        return None


def load_upright(image: Image.Image) -> Image.Image:
    """Decode the pixels and apply the EXIF orientation.

    Raises:
        Image.DecompressionBombError: it has more pixels than `Image.MAX_IMAGE_PIXELS`.
    """
    check_pixels(*image.size)
    image.load()  # a PNG may have its metadata after the pixels
    # Skip images without such metadata: exif_transpose takes as long as decoding.
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
