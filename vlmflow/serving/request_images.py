"""Read the image of a request: base64 or a data URI. Images are never fetched from an address."""

import base64
import binascii
from typing import Any

from PIL import Image, UnidentifiedImageError

from vlmflow.images import decoding

MAX_PIXELS = 40_000_000


def parse_image(value: Any) -> Image.Image:
    """Decode the image of a request: `{"b64": …}`, base64 text, or `data:image/…;base64,…`.

    Returns:
        The image upright, RGB; transparent parts are white.

    Raises:
        ValueError: the image is missing, an address, or cannot be decoded.
    """
    if isinstance(value, dict):
        if "b64" not in value:
            raise ValueError('image: expected {"b64": "<base64>"} or a data URI')
        value = value["b64"]
    if not isinstance(value, str) or not value:
        raise ValueError("image: missing; send base64 or a data URI")
    if value[:8].lower().startswith(("http:", "https:", "file:", "ftp:")):
        raise ValueError("image: addresses are not fetched; send the image itself as a data URI")
    if value.startswith("data:"):
        head, comma, value = value.partition(",")
        if not comma or not head.endswith(";base64"):
            raise ValueError("image: expected a data URI such as data:image/png;base64,…")
    try:
        content = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("image: not valid base64") from None
    return decode_image(content)


def decode_image(content: bytes) -> Image.Image:
    """Decode an encoded image to RGB.

    Raises:
        ValueError: the bytes are not an image, or the image is damaged or too large.
    """
    try:
        with decoding.open_image(content) as header:
            if header.width * header.height > MAX_PIXELS:
                raise ValueError(f"image: {header.width}×{header.height} pixels; at most {MAX_PIXELS:,} are allowed")
        return decoding.decode(content)  # as in training
    except UnidentifiedImageError:
        raise ValueError(f"image: the {len(content)} bytes are not an image") from None
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"image: the image is damaged: {error}") from None
