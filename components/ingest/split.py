"""The split of each image, train or test. It is assigned here once, for all later steps."""

import hashlib
from typing import Any

from vlmflow.errors import RecordError

SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "test",
    "valid": "test",
    "validation": "test",
    "dev": "test",
    "testa": "test",
    "testb": "test",
}


UNKNOWN_SPLIT = "unknown split"  # kind of error


def resolve_split(value: Any, encoded: bytes, seed: int, holdout: float) -> str:
    """Return train or test: by the dataset's own split name `value`, or by a hash of the image if `value` is empty.

    Raises:
        RecordError: `value` is not a known split name.
    """
    if value in (None, ""):
        return hash_split(encoded, seed, holdout)
    split = SPLITS.get(str(value).strip().lower())
    if split is None:
        raise RecordError(UNKNOWN_SPLIT, f"{value!r:.80}; use one of {', '.join(SPLITS)}")
    return split


def hash_split(encoded: bytes, seed: int, holdout: float) -> str:
    """Return train or test, by a hash of the image bytes and the seed.

    The split depends neither on the order of the rows nor on the number of captions of an image.
    """
    digest = hashlib.blake2b(encoded, digest_size=8, key=str(seed).encode()).digest()
    return "test" if int.from_bytes(digest, "big") < holdout * 2**64 else "train"
