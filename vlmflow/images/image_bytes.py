"""Encoded image bytes from the value in a row: bytes, a dict with bytes, or the name of a file."""

import base64
from typing import TYPE_CHECKING, Any

from PIL import ExifTags, Image, UnidentifiedImageError

from vlmflow.errors import RecordError
from vlmflow.images.decoding import FORMATS, check_pixels, open_image

if TYPE_CHECKING:
    from upath import UPath

OTHER_FILES = {
    b"version https://git-lfs": "a pointer of Git LFS; run `git lfs pull`",
    b"<svg": "SVG; convert it to PNG",
    b"<": "HTML or XML",
    b"%!ps": "EPS; convert it to PNG",
    b"%pdf": "PDF; convert its pages to PNG",
    b"ftypheic": "HEIC; convert it to JPEG",
}  # by the first bytes, in lower case; for messages
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
LONGEST_NAME = 200  # characters; a longer text may be an image in base64, whose alphabet has no dot
NO_FILE = "no such file"  # kind of error
MAX_FILE_BYTES = 2**28  # larger files are not read


def read(value: Any, folders: list["UPath"]) -> bytes:
    """Return the encoded bytes of the image `value`.

    Args:
        value: bytes, `{"bytes": …, "path": …}`, a file name or URL, a data URI, base64 text, or a list with one of
            these.
        folders: searched for relative names, in order.

    Raises:
        RecordError: the image is missing or cannot be read.
    """
    from vlmflow.artifacts.files import find_file  # not needed by the decoding processes, which import this module

    name = resolve(value)
    if isinstance(name, bytes):
        return name
    if name.startswith(("http://", "https://")):
        raise RecordError(NO_FILE, f"{name[:200]} is a URL; download the images first")
    file = find_file(name, folders)
    try:
        check_size(file.stat().st_size)
        encoded = file.read_bytes()
    except (OSError, ValueError) as error:
        raise RecordError("unreadable file", f"{name[:200]!r}: {error}") from None
    check_size(len(encoded))  # the file may have grown
    return encoded


def resolve(value: Any) -> bytes | str:
    """Return the encoded bytes in the image `value`, or else the name of its file.

    Raises:
        RecordError: it is neither, or is larger than a file may be.
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
    if (content := _from_base64(value)) is not None:
        check_size(len(content))
        return content
    return value


def check_size(size: int) -> None:
    """Raise RecordError if `size`, in bytes, is above 256 MiB."""
    if size > MAX_FILE_BYTES:
        raise RecordError("too many bytes", f"{size} bytes, the limit is {MAX_FILE_BYTES}")


def _from_base64(value: str) -> bytes | None:
    """Return the bytes of a bare base64 text; None if `value` is a name: short, or with a suffix."""
    if len(value) <= LONGEST_NAME or "." in value:
        return None
    try:
        return base64.b64decode(value, validate=True)
    except ValueError:
        return None


def read_size(encoded: bytes, *, any_jpeg: bool = False) -> tuple[int, int]:
    """Return (width, height) in pixels from the header, with EXIF orientation applied.

    The pixels are not decoded, so an image that is truncated after its header passes.

    Args:
        any_jpeg: accept a JPEG with any number of pixels, which can be decoded at a smaller scale.

    Raises:
        RecordError: the bytes are not an image, the header is damaged, or the image has more pixels than
            `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    if not encoded:
        raise RecordError("not an image", "0 bytes")
    try:
        with open_image(encoded) as image:
            width, height = image.size
            if not any_jpeg:
                check_pixels(width, height)
            turned = image.format != "TIFF" and _orientation(image, encoded) in TURNED  # Pillow turns TIFF itself
    except UnidentifiedImageError:
        raise RecordError("not an image", _describe(encoded)) from None
    except Image.DecompressionBombError as error:
        raise RecordError("too many pixels", f"{error}; make it smaller") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins can raise almost any type on a damaged file
        raise RecordError("damaged header", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from None
    return (height, width) if turned else (width, height)


def _describe(encoded: bytes) -> str:
    begin = encoded[:64].lstrip().lower()
    for signature, name in OTHER_FILES.items():
        if begin.startswith(signature) or (signature.startswith(b"ftyp") and begin[4:12] == signature):
            return name
    return f"{len(encoded)} bytes in none of the formats {', '.join(FORMATS)}"


def _orientation(image: Image.Image, encoded: bytes) -> int:
    # PNG's getexif decodes all pixels if the header has no EXIF; this is needed only if an eXIf chunk follows them.
    exif = image.getexif() if b"eXIf" in encoded else Image.Image.getexif(image)
    return exif.get(ExifTags.Base.Orientation, 1)
