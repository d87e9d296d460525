"""Balancing: keep frequent words or phrases (entries) from dominating the dataset.

Source: Xu et al. 2023, "Demystifying CLIP data" (MetaCLIP), algorithm 1.
"""

import hashlib
from collections import Counter

import numpy as np

from components.curate.phrases import find_phrases, normalize_caption


def match_entries(caption: str, entries: frozenset[str] | None) -> set[str]:
    """Return the entries that occur in the caption as whole words; all its words where `entries` is None."""
    return set(normalize_caption(caption).split()) if entries is None else find_phrases(caption, entries)


def keep_probabilities(matched: list[set[str]], limit: int) -> np.ndarray:
    """Return the probability that each pair is kept, (N,): 1 − Π(1 − p) over its entries, p = t / max(count, t).

    In the paper each entry draws its pairs separately, and a pair is kept if any entry draws it. That event has this
    probability, so one draw per pair is enough. The probability of a pair without an entry is 0.

    Args:
        matched: entries of each pair. limit: the paper's t, the number of pairs of an entry that is not exceeded.
    """
    counts = Counter(entry for entries in matched for entry in entries)
    missed = {entry: 1 - limit / max(count, limit) for entry, count in counts.items()}
    return np.array(
        [1 - np.prod([missed[entry] for entry in sorted(entries)]) if entries else 0.0 for entries in matched]
    )


def uniform_draws(uids: list[str], seed: int) -> np.ndarray:
    """Return uniform numbers in [0, 1), (N,), that depend on uid and seed only, not on the order of the rows."""
    hashes = (hashlib.blake2b(f"{seed}/{uid}".encode(), digest_size=8).digest() for uid in uids)
    return np.array([int.from_bytes(digest, "big") >> 11 for digest in hashes]) / 2.0**53
