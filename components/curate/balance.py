"""Balance: no subject may crowd out the others.

Source: Xu et al. 2023, "Demystifying CLIP data" (MetaCLIP), algorithm 1.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from components.curate import caption_rules
from vlmflow.errors import DataError


@dataclass(frozen=True, kw_only=True)
class BalanceConfig:
    """How many pairs an entry may have before its pairs are thinned out.

    `limit` is MetaCLIP's t, null for no balancing. `entries` is a file of one word or phrase a line; null takes
    the words of the captions themselves.
    """

    limit: int | None = None
    entries: str | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1 pair or null, got {self.limit}")
        if self.limit is None and self.entries is not None:
            raise ValueError(
                f"entries {self.entries!r} is set and limit is not; set limit, the pairs an entry may have"
            )


def read(path: str) -> frozenset[str]:
    """The entries of a file, normalised as captions are.

    Raises:
        DataError: it cannot be read, or holds no entry.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"balance.entries {path}: cannot be read: {error}; give a text file of one entry a line"
        ) from None
    entries = frozenset(map(caption_rules.normalised, lines)) - {""}
    if not entries:
        raise DataError(f"balance.entries {path}: holds no entry; give a text file of one word or phrase a line")
    return entries


def matches(caption: str, entries: frozenset[str] | None) -> set[str]:
    """The entries that stand in the caption between word boundaries; every word of it where `entries` is None."""
    words = caption_rules.normalised(caption).split()
    if entries is None:
        return set(words)
    longest = max(entry.count(" ") for entry in entries) + 1
    spans = (" ".join(words[i : i + n]) for n in range(1, longest + 1) for i in range(len(words) - n + 1))
    return {span for span in spans if span in entries}


def probabilities(matched: list[set[str]], limit: int) -> np.ndarray:
    """(N,) with which each pair is kept: 1 − Π(1 − p) over its entries, p = t / max(count, t).

    That any of its entries draws it is one event of this probability, so one draw decides, and no pair is
    kept twice. A pair that matches nothing has 0.
    """
    counts = Counter(entry for entries in matched for entry in entries)
    missed = {entry: 1 - limit / max(count, limit) for entry, count in counts.items()}
    return np.array(
        [1 - np.prod([missed[entry] for entry in sorted(entries)]) if entries else 0.0 for entries in matched]
    )


def draws(uids: list[str], seed: int) -> np.ndarray:
    """(N,) uniform numbers in [0, 1): of the uid and the seed alone, so that the rows' order does not matter."""
    hashes = (hashlib.blake2b(f"{seed}/{uid}".encode(), digest_size=8).digest() for uid in uids)
    return np.array([int.from_bytes(digest, "big") >> 11 for digest in hashes]) / 2.0**53
