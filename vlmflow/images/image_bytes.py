"""Encoded image bytes from the value in a row: bytes, a dict with bytes, or the name of a file."""

import base64
import io
import warnings
from typing import TYPE_CHECKING, Any

from PIL import ExifTags, Image, UnidentifiedImageError

from vlmflow.errors import RecordError

if TYPE_CHECKING:
    from upath import UPath

# Only raster formats with a signature: others run a program (EPS), a system library (WMF), or accept any bytes (TGA).
Image.init()
RASTER = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "MPO", "ICO")
FORMATS = [name for name in RASTER if name in Image.OPEN]
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
MAX_FILE_BYTES = 2**28  # larger files are not read


def read(value: Any, folders: list["UPath"]) -> bytes:
    """Return the encoded bytes of the image `value`.

    Args:
        value: bytes, `{"bytes": …, "path": …}`, a file name or URL, a data URI, or a list with one of these.
        folders: searched for relative names, in order.

    Raises:
        RecordError: the image is missing or cannot be read.
    """
    if isinstance(value, list):
        if len(value) > 1:
            raise RecordError("several images", f"{len(value)} in one row; a pair has one image")
        value = value[0] if value else None
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        check_size(len(value))
        return value
    if not isinstance(value, str) or not value.strip():
        raise RecordError("no image", "" if value in (None, "") else f"neither bytes nor a file name: {value!r:.80}")
    if value.startswith("data:"):
        try:
            content = base64.b64decode(value.partition(",")[2], validate=True)
        except ValueError as error:
            raise RecordError("damaged image", f"data URI: {error}") from None
        check_size(len(content))
        return content
    if value.startswith(("http://", "https://")):
        raise RecordError("no such file", f"{value[:200]} is a URL; download the images first")
    for path in _candidates(value, folders):
        try:
            if path.is_file():  # skips pipes and devices
                check_size(path.stat().st_size)
                encoded = path.read_bytes()
                check_size(len(encoded))  # the file may have grown
                return encoded
        except (OSError, ValueError) as error:
            raise RecordError("unreadable file", f"{value[:200]!r}: {error}") from None
    raise RecordError("no such file", value[:200])


def check_size(size: int) -> None:
    """Raise RecordError if `size`, in bytes, is above 256 MiB."""
    if size > MAX_FILE_BYTES:
        raise RecordError("too many bytes", f"{size} bytes, the limit is {MAX_FILE_BYTES}")


def _candidates(value: str, folders: list["UPath"]) -> list["UPath"]:
    from upath import UPath

    from vlmflow.artifacts.addresses import is_remote

    return [UPath(value)] if is_remote(value) else [folder / value for folder in folders]


def read_size(encoded: bytes) -> tuple[int, int]:
    """Return (width, height) in pixels from the header, with EXIF orientation applied.

    The pixels are not decoded, so an image that is truncated after its header passes.

    Raises:
        RecordError: the bytes are not an image, the header is damaged, or the image has more pixels than
            `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
                width, height = image.size
                turned = image.format != "TIFF" and _orientation(image, encoded) in TURNED  # Pillow turns TIFF itself
    except UnidentifiedImageError:
        raise RecordError("not an image", f"{len(encoded)} bytes in no supported format") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise RecordError("too many pixels", str(error)) from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins can raise almost any type on a damaged file
        raise RecordError("damaged header", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from None
    return (height, width) if turned else (width, height)


def _orientation(image: Image.Image, encoded: bytes) -> int:
    # PNG's getexif decodes all pixels if the header has no EXIF; this is needed only if an eXIf chunk follows them.
    exif = image.getexif() if b"eXIf" in encoded else Image.Image.getexif(image)
    return exif.get(ExifTags.Base.Orientation, 1)
