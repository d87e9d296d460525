"""A picture as an index gives it: bytes, a mapping with bytes, or the name of a file."""

import base64
import io
import warnings
from typing import TYPE_CHECKING, Any

from PIL import ExifTags, Image, UnidentifiedImageError

from vlmflow.errors import RecordError

if TYPE_CHECKING:
    from upath import UPath

# Raster formats with a signature only: others run a program (EPS), a system library (WMF), or accept any bytes (TGA).
Image.init()
RASTER = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "MPO", "ICO")
FORMATS = [name for name in RASTER if name in Image.OPEN]
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
MAX_FILE_BYTES = 2**28  # a larger file is not read: it is no picture, or none that a step could hold many of


def read(value: Any, folders: list["UPath"]) -> bytes:
    """Return the encoded bytes of the picture that `value` stands for.

    Args:
        value: bytes, `{"bytes": …, "path": …}`, a file's name or address, a data URI, or a list with one of these.
        folders: where a relative name is looked for, in order.

    Raises:
        RecordError: there is none, or the file cannot be read.
    """
    if isinstance(value, list):
        if len(value) > 1:
            raise RecordError("several pictures", f"{len(value)} in one row; a pair has one")
        value = value[0] if value else None
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return checked(value)
    if not isinstance(value, str) or not value.strip():
        raise RecordError(
            "no picture", "" if value in (None, "") else f"neither bytes nor a file's name: {value!r:.80}"
        )
    if value.startswith("data:"):
        try:
            return checked(base64.b64decode(value.partition(",")[2], validate=True))
        except ValueError as error:
            raise RecordError("damaged picture", f"data URI: {error}") from None
    if value.startswith(("http://", "https://")):
        raise RecordError("no such file", f"{value[:200]} is an address: download the pictures first")
    for place in _places(value, folders):
        try:
            if place.is_file():  # also keeps a pipe or a device from being read
                check_size(place.stat().st_size)
                return checked(place.read_bytes())
        except (OSError, ValueError) as error:
            raise RecordError("unreadable file", f"{value[:200]!r}: {error}") from None
    raise RecordError("no such file", value[:200])


def checked(encoded: bytes) -> bytes:
    """Return `encoded` if it is not too large.

    Raises:
        RecordError: it has more than 256 MiB.
    """
    check_size(len(encoded))
    return encoded


def check_size(size: int) -> None:
    """Raises RecordError for a file of more than 256 MiB."""
    if size > MAX_FILE_BYTES:
        raise RecordError("too many bytes", f"{size} of {MAX_FILE_BYTES} at most")


def _places(value: str, folders: list["UPath"]) -> list["UPath"]:
    from upath import UPath

    from vlmflow.artifacts.addresses import is_remote

    return [UPath(value)] if is_remote(value) else [folder / value for folder in folders]


def read_size(encoded: bytes) -> tuple[int, int]:
    """Return (width, height) in pixels from the header, as the picture is seen: EXIF orientation applied.

    The pixels are not decoded, so a picture that is cut off after its header passes.

    Raises:
        RecordError: the bytes are no picture, its header is damaged, or it has more pixels than
            `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(encoded), formats=FORMATS) as picture:
                width, height = picture.size
                turned = picture.format != "TIFF" and _orientation(picture, encoded) in TURNED  # TIFF's is turned
    except UnidentifiedImageError:
        raise RecordError("not a picture", f"{len(encoded)} bytes in no format known here") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise RecordError("too many pixels", str(error)) from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise nearly every type there is on a damaged file
        raise RecordError("damaged header", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from None
    return (height, width) if turned else (width, height)


def _orientation(picture: Image.Image, encoded: bytes) -> int:
    # PNG's own getexif decodes all pixels when the header has no EXIF; that is only needed if a chunk follows them.
    exif = picture.getexif() if b"eXIf" in encoded else Image.Image.getexif(picture)
    return exif.get(ExifTags.Base.Orientation, 1)
