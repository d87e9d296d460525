"""Which pictures are for training and which for the test: decided once, here."""

import hashlib
from typing import Any

from vlmflow.errors import DataError

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


def resolve_split(value: Any, encoded: bytes, place: str, seed: int, holdout: float) -> str:
    """Return train or test: what the data set calls it, or drawn by the picture where it says nothing.

    Raises:
        DataError: `value`, found at `place`, is none of the known names.
    """
    if value in (None, ""):
        return hash_split(encoded, seed, holdout)
    split = SPLITS.get(str(value).strip().lower())
    if split is None:
        raise DataError(
            f"{place}: ingest.columns.split: {value!r} is no split; known: {', '.join(SPLITS)}; "
            "map no split column to have the splits drawn"
        )
    return split


def hash_split(encoded: bytes, seed: int, holdout: float) -> str:
    """Return train or test, by the picture's bytes and the seed alone.

    So neither the order of the rows nor a second caption of the same picture changes its side.
    """
    digest = hashlib.blake2b(encoded, digest_size=8, key=str(seed).encode()).digest()
    return "test" if int.from_bytes(digest, "big") < holdout * 2**64 else "train"
