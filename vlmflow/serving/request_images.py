"""A picture out of a request: base64 or a data URI, never fetched from anywhere."""

import base64
import binascii
from io import BytesIO
from typing import Any

from PIL import Image, UnidentifiedImageError

from vlmflow.images import decoding

MAX_PIXELS = 40_000_000


def parse_image(value: Any) -> Image.Image:
    """Decode what a request holds for a picture: `{"b64": …}`, base64 text, or `data:image/…;base64,…`.

    Returns:
        The picture upright, RGB; transparent parts on white.

    Raises:
        ValueError: there is none, it is an address, or it cannot be decoded.
    """
    if isinstance(value, dict):
        if "b64" not in value:
            raise ValueError('image: expected {"b64": "<base64>"} or a data URI')
        value = value["b64"]
    if not isinstance(value, str) or not value:
        raise ValueError("image: no picture; send base64 or a data URI")
    if value[:8].lower().startswith(("http:", "https:", "file:", "ftp:")):
        raise ValueError("image: addresses are not fetched; send the picture itself as a data URI")
    if value.startswith("data:"):
        head, comma, value = value.partition(",")
        if not comma or not head.endswith(";base64"):
            raise ValueError("image: a data URI must read data:image/png;base64,…")
    try:
        content = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("image: not valid base64") from None
    return decode_image(content)


def decode_image(content: bytes) -> Image.Image:
    """Decode an encoded picture to RGB.

    Raises:
        ValueError: the bytes are no picture, a broken one, or too large a one.
    """
    try:
        with Image.open(BytesIO(content)) as header:
            if header.width * header.height > MAX_PIXELS:
                raise ValueError(f"image: {header.width}×{header.height} pixels, at most {MAX_PIXELS:,} are taken")
        return decoding.decode(content)  # as in training
    except UnidentifiedImageError:
        raise ValueError(f"image: the {len(content)} bytes are not a picture") from None
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"image: the picture is broken: {error}") from None
