"""Small images for HTML pages."""

import base64
import io

from PIL import Image

from vlmflow.images import image_statistics
from vlmflow.images.decoding import decode_or_none


def thumbnail_uri(data: bytes | None, side: int) -> str:
    """Return a WebP of at most side × side px as a data URI, or "" if the image cannot be decoded."""
    with image_statistics.ignore_pillow_warnings():
        image = decode_or_none(data, at_least=2 * side)
    if image is None:
        return ""
    image.thumbnail((side, side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
