"""Whether pictures can be read: every header, and the pixels of those that look cut off or fall into a sample.

Decoding is what curation does to all; here it would cost a hundred times what everything else does.
"""

import hashlib
import struct
import warnings

import numpy as np

from vlmflow.errors import RecordError
from vlmflow.images import image_bytes
from vlmflow.images.decoding import decode

END_MARKERS = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND"}  # how a JPEG and a PNG begin and end
TAIL_BYTES = 64  # bytes in which the end is looked for: a few may follow it
CACHE_SIZE = 4096  # results kept, for rows that show one picture: they stand near each other


class ImageChecker:
    """Looks at pictures row by row, and remembers 16 bytes of each.

    Args:
        share: of the different pictures is decoded. Chosen by content: in any order of rows it is the same ones.
    """

    def __init__(self, share: float):
        self.limit = int(share * 2**64)
        self.found: dict[bytes, tuple[int, int] | str] = {}
        self.digests = bytearray()
        self.counts: list[int] = []

    def check_row(self, pictures: list[bytes | None]) -> list[tuple[int, int] | str]:
        """Return (width, height) in pixels of each of a row's pictures, or why it cannot be read."""
        digests = [hashlib.sha256(encoded or b"").digest()[:16] for encoded in pictures]
        self.digests += b"".join(digests)
        self.counts.append(len(digests))
        return [self._check(digest, encoded or b"") for digest, encoded in zip(digests, pictures, strict=True)]

    def in_both_splits(self, test: np.ndarray, train: np.ndarray) -> np.ndarray:
        """(N,) bool: a `train` row of which a picture is in a `test` row too; both (N,) bool, a row each."""
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
    """(width, height) from the header of a plain JPEG, fifteen times as fast as by Pillow.

    None for all that needs a closer look: another format, a damaged header, an orientation, too many pixels.
    """
    at = 2
    while encoded[:2] == b"\xff\xd8" and len(encoded) > at + 9 and encoded[at] == 0xFF:
        marker, length, precision, height, width = struct.unpack_from(">BHBHH", encoded, at + 1)
        if marker in (0xC0, 0xC1, 0xC2):  # a frame: baseline, extended or progressive
            most = image_bytes.Image.MAX_IMAGE_PIXELS or 0  # 0: whoever lifted the limit has all looked at closely
            return (width, height) if precision == 8 and 0 < width * height <= most else None
        if not (0xC4 <= marker <= 0xFE and marker not in (0xD8, 0xD9, 0xDA, 0xE1)):
            return None  # 0xE1 may hold EXIF, which may turn the picture
        at += 2 + length
    return None


def _decode(encoded: bytes) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a decoder's remarks on what it can read all the same
            decode(encoded, at_least=1)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises whatever the damage leads to
        raise RecordError("cannot be decoded", f"{type(error).__name__}: {error}") from None
