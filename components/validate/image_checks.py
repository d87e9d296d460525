"""Checks that images can be read: the header of every image, and the pixels of a sample and of truncated-looking files.

Decoding every image, as curation does, would take a hundred times as long as all other checks.
"""

import hashlib
import struct
import warnings

import numpy as np

from vlmflow.errors import RecordError
from vlmflow.images import image_bytes
from vlmflow.images.decoding import decode

END_MARKERS = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND"}  # how a JPEG and a PNG begin and end
TAIL_BYTES = 64  # the end marker is searched in these last bytes: a few bytes may follow it
CACHE_SIZE = 4096  # cached results: rows with the same image are near each other


class ImageChecker:
    """Check images row by row, and keep a digest of 16 bytes of each.

    Args:
        share: fraction of the distinct images to decode; chosen by content, so independent of the row order.
    """

    def __init__(self, share: float):
        self.limit = int(share * 2**64)
        self.found: dict[bytes, tuple[int, int] | str] = {}
        self.digests = bytearray()
        self.counts: list[int] = []

    def check_row(self, images: list[bytes | None]) -> list[tuple[int, int] | str]:
        """Return (width, height) in pixels of each of a row's images, or the reason why it cannot be read."""
        digests = [hashlib.sha256(encoded or b"").digest()[:16] for encoded in images]
        self.digests += b"".join(digests)
        self.counts.append(len(digests))
        return [self._check(digest, encoded or b"") for digest, encoded in zip(digests, images, strict=True)]

    def in_both_splits(self, test: np.ndarray, train: np.ndarray) -> np.ndarray:
        """Return (N,) bool: rows of `train` with an image that is also in a row of `test`; both are (N,) bool."""
        rows = np.repeat(np.arange(len(self.counts)), self.counts)
        numbers = np.unique(np.frombuffer(self.digests, dtype="V16"), return_inverse=True)[1]
        tested = np.isin(numbers, numbers[test[rows]])
        out = np.zeros(len(self.counts), dtype=bool)
        out[rows[tested]] = True
        return out & train

    def _check(self, digest: bytes, encoded: bytes) -> tuple[int, int] | str:
        if digest not in self.found:
            if len(self.found) == CACHE_SIZE:
                self.found.clear()
            try:
                size = read_jpeg_size(encoded) or image_bytes.read_size(encoded)
                ending = END_MARKERS.get(encoded[:2])
                cut = ending is not None and ending not in encoded[-TAIL_BYTES:]
                if cut or int.from_bytes(digest[:8], "big") < self.limit:
                    _decode(encoded)
                self.found[digest] = size
            except RecordError as reason:
                self.found[digest] = str(reason)
        return self.found[digest]


def read_jpeg_size(encoded: bytes) -> tuple[int, int] | None:
    """Return (width, height) from the header of a plain JPEG, fifteen times as fast as Pillow.

    None for images that Pillow must check: another format, a damaged header, an EXIF orientation, too many pixels.
    """
    at = 2
    while encoded[:2] == b"\xff\xd8" and len(encoded) > at + 9 and encoded[at] == 0xFF:
        marker, length, precision, height, width = struct.unpack_from(">BHBHH", encoded, at + 1)
        if marker in (0xC0, 0xC1, 0xC2):  # a frame: baseline, extended or progressive
            most = image_bytes.Image.MAX_IMAGE_PIXELS or 0  # 0 if there is no limit: Pillow then checks all
            return (width, height) if precision == 8 and 0 < width * height <= most else None
        if not (0xC4 <= marker <= 0xFE and marker not in (0xD8, 0xD9, 0xDA, 0xE1)):
            return None  # 0xE1 may hold EXIF with an orientation
        at += 2 + length
    return None


def _decode(encoded: bytes) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about images that decode anyway
            decode(encoded, at_least=1)
    except MemoryError:
        raise
    except Exception as error:  # Pillow can raise almost any type on a damaged file
        raise RecordError("cannot be decoded", f"{type(error).__name__}: {error}") from None
