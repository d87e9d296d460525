"""Read the images of a request: base64 or data URIs, within a budget of pixels. Nothing is fetched from an address."""

import base64
import binascii
import warnings
from dataclasses import dataclass
from typing import Any

from PIL import Image

from vlmflow.errors import RecordError
from vlmflow.images import decoding, image_bytes

MAX_IMAGE_PIXELS = 40_000_000
MAX_REQUEST_PIXELS = 100_000_000


@dataclass(frozen=True)
class RequestImage:
    """A decoded image: upright, RGB, transparent parts white; `width` and `height` are those of the image as sent."""

    pixels: Image.Image
    width: int
    height: int


class ImageReader:
    """Decodes the images of one request, one at a time.

    Args:
        at_least: a larger image is reduced by a whole factor, neither side below this many pixels.
        budget: pixels in all images of the request.
    """

    def __init__(self, at_least: int, budget: int = MAX_REQUEST_PIXELS):
        self.at_least, self.budget, self.left = at_least, budget, budget

    def read(self, value: Any) -> RequestImage:
        """Decode an image: encoded bytes, `{"b64": …}`, base64 text, or `data:image/…;base64,…`.

        Raises:
            ValueError: the image is missing, an address, damaged, or too large.
        """
        content = value if isinstance(value, bytes) else _decode_base64(value)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # warnings about images that decode anyway
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                width, height = image_bytes.read_size(content)
                self._spend(width, height)
                pixels = decoding.decode(content, at_least=self.at_least)
                factor = max(1, min(pixels.size) // self.at_least)
                return RequestImage(pixels.reduce(factor), width, height)
        except RecordError as error:
            raise ValueError(f"image: {error}") from None
        except (MemoryError, _TooLarge):
            raise
        except Exception as error:  # Pillow's plugins can raise almost any type on a damaged file
            raise ValueError(f"image: damaged: {type(error).__name__}: {error}") from None

    def _spend(self, width: int, height: int) -> None:
        if width * height > MAX_IMAGE_PIXELS:
            raise _TooLarge(f"image: {width}×{height} pixels; at most {MAX_IMAGE_PIXELS:,} are allowed")
        self.left -= width * height
        if self.left < 0:
            raise _TooLarge(
                f"the images of one request have more than {self.budget:,} pixels; send fewer or smaller ones"
            )


class _TooLarge(ValueError):
    pass


def _decode_base64(value: Any) -> bytes:
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
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("image: not valid base64") from None
