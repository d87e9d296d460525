"""Duplicates: the same pair twice, the same picture in another size or file, a picture of the test set.

A perceptual hash proposes, the pixels decide. `near` finds every pair of pictures within a Hamming
distance of their dHashes, exactly; of those it keeps the ones whose small versions agree in every cell.
The hash alone merges different pictures of one layout (a red heart and a blue one have the same dHash).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

BANDS = 4  # of 16 bits each
_WIDTH = 64 // BANDS
_CHUNK = 1 << 20  # candidate pairs in memory at a time


@dataclass(frozen=True)
class ImageSet:
    """N pictures, the most worth keeping first."""

    hashes: np.ndarray  # (N,) uint64 dHashes
    signatures: np.ndarray  # (N,) 16 bytes: digest of hash and cells
    coarse: np.ndarray  # (N, 48) uint8 means of 4 × 4 cells, colour halved, rounded down
    cells: "Cells"
    groups: np.ndarray  # (N,) int: only pictures of one group make each other needless
    is_test: np.ndarray  # (N,) bool: of the test split


class Cells:
    """(N, 768) uint8, mean Y, Cb and Cr of each of 16 × 16 cells of N pictures: in parts that lie where they are.

    Args:
        parts: such as files that are mapped to memory, of which only what is looked at is read.
        rows: of all the parts' rows those that count, in this order; None: every one.
    """

    def __init__(self, parts: Sequence[np.ndarray], rows: np.ndarray | None = None):
        self.parts, self.starts = parts, np.cumsum([0, *(len(part) for part in parts)])
        self.rows = np.arange(self.starts[-1]) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        """(M, 768) a copy of those at M places."""
        rows = self.rows[places]
        found, part = np.empty((len(rows), 768), np.uint8), np.searchsorted(self.starts, rows, "right") - 1
        for number in np.unique(part):
            here = part == number
            found[here] = self.parts[number][rows[here] - self.starts[number]]
        return found

    def view(self, places: np.ndarray) -> "Cells":
        """Those at `places`, none of them copied."""
        return Cells(self.parts, self.rows[places])

    def __add__(self, other: "Cells") -> "Cells":
        return Cells([*self.parts, *other.parts], np.concatenate([self.rows, other.rows + self.starts[-1]]))


def first_occurrences(keys: list[bytes]) -> np.ndarray:
    """(N,) for each key the place of its first occurrence, or -1 where it is the first."""
    first: dict[bytes, int] = {}
    places = np.array([first.setdefault(key, place) for place, key in enumerate(keys)], dtype=np.int64)
    return np.where(places == np.arange(len(keys)), -1, places)


def find_duplicates(images: ImageSet, phash_distance: int, max_cell_difference: float) -> tuple[np.ndarray, np.ndarray]:
    """For each training picture the test picture that it copies; for the others the earlier one of their group.

    Args:
        bits: the largest Hamming distance of two copies' hashes.
        levels: the largest difference of any of their cells; see `difference`.

    Returns:
        leaks: (N,) places, or -1. copies: (N,) places, or -1; of a leak it says nothing.
    """
    count = len(images.hashes)
    # Pictures that look the same to the last bit stand for one another: a placeholder may be there ten thousand times.
    looks = np.concatenate(
        [
            images.signatures[:, None].view(np.uint8),
            images.groups[:, None].astype(np.int64).view(np.uint8),
            images.is_test[:, None].view(np.uint8),
        ],
        axis=1,
    )
    like = first_occurrences([look.tobytes() for look in looks])
    leaders = np.flatnonzero(like < 0)
    of_leaders = images.hashes[leaders], images.coarse[leaders], images.cells.view(leaders)
    first, second = (leaders[places] for places in near_pairs(*of_leaders, phash_distance, max_cell_difference))
    leaks = np.full(count, -1)
    crossing = images.is_test[first] != images.is_test[second]
    for i, j in zip(first[crossing].tolist(), second[crossing].tolist(), strict=True):
        train, test = (j, i) if images.is_test[i] else (i, j)
        leaks[train] = test
    same = (images.groups[first] == images.groups[second]) & (leaks[first] < 0) & (leaks[second] < 0)
    copies = _keep_first(count, first[same], second[same])
    followers = np.flatnonzero(like >= 0)
    leader = like[followers]
    leaks[followers] = leaks[leader]
    copies[followers] = np.where(copies[leader] < 0, leader, copies[leader])
    return leaks, copies


def near_pairs(
    hashes: np.ndarray, coarse: np.ndarray, cells: Cells, phash_distance: int, max_cell_difference: float
) -> tuple[np.ndarray, np.ndarray]:
    """(M,) first and (M,) second of all near pairs, first < second, in order of second and then of first."""
    columns = np.ascontiguousarray(coarse.T)
    found = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
    for first, second in _candidates(hashes, phash_distance):
        # Means of 4 × 4 cells, rounded down, differ by less than 1 more than the cells: no pair is lost.
        for column in columns:
            one, other = column[first], column[second]
            close = np.maximum(one, other) - np.minimum(one, other) < max_cell_difference + 1
            first, second = first[close], second[close]
        close = cell_difference(cells, first, second) <= max_cell_difference
        found.append((first[close], second[close]))
    first, second = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((first, second))
    return first[order], second[order]


def cell_difference(cells: Cells, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(M,) the largest difference of brightness in any cell, or half that of colour, in levels of 0-255.

    The largest, not the mean: a clock that shows another hour differs in few cells. Half for colour, since JPEG
    keeps colour at half the resolution.
    """
    apart = np.empty(len(first))
    for start in range(0, len(first), 1024):
        part = slice(start, start + 1024)
        one, other = cells[first[part]], cells[second[part]]
        delta = np.maximum(one, other) - np.minimum(one, other)  # (m, 768) uint8, so that it does not wrap
        apart[part] = np.maximum(delta[:, :256].max(axis=1), delta[:, 256:].max(axis=1) / 2)
    return apart


def _keep_first(count: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """For each picture the earlier one that it copies, or -1; what copies only dropped pictures is kept."""
    copies = np.full(count, -1)
    for i, j in zip(first.tolist(), second.tolist(), strict=True):
        if copies[j] < 0 and copies[i] < 0:
            copies[j] = i
    return copies


def _candidates(hashes: np.ndarray, bits: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every pair (first < second) of hashes at most `bits` apart, once.

    If two hashes differ in at most `bits` bits, then some one of `BANDS` bands differs in at most
    bits // BANDS. So each band is looked up at every value that near, and the first that agrees counts.
    """
    radius = bits // BANDS
    bands = [
        ((hashes >> np.uint64(band * _WIDTH)) & np.uint64((1 << _WIDTH) - 1)).astype(np.int64) for band in range(BANDS)
    ]
    for number, keys in enumerate(bands):
        order = np.argsort(keys, kind="stable")
        starts = np.searchsorted(keys[order], np.arange((1 << _WIDTH) + 1))
        for mask in _masks(radius):
            for rows, members in _members(starts, keys ^ mask, order):
                close = (rows < members) & (np.bitwise_count(hashes[rows] ^ hashes[members]) <= bits)
                rows, members = rows[close], members[close]
                for earlier in bands[:number]:
                    new = np.bitwise_count(earlier[rows] ^ earlier[members]) > radius
                    rows, members = rows[new], members[new]
                if len(rows):
                    yield rows, members


def _members(starts: np.ndarray, wanted: np.ndarray, order: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each row with every member of the bucket that it wants, about `_CHUNK` pairs at a time."""
    begin, sizes = starts[wanted], starts[wanted + 1] - starts[wanted]
    ends = np.cumsum(sizes)
    row = 0
    while row < len(wanted):
        done = ends[row - 1] if row else 0
        stop = max(row + 1, int(np.searchsorted(ends, done + _CHUNK)))
        counts = sizes[row:stop]
        rows = np.repeat(np.arange(row, stop), counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        yield rows, order[np.repeat(begin[row:stop], counts) + within]
        row = stop


def _masks(radius: int) -> Iterator[np.int64]:
    """Every pattern of at most `radius` flipped bits of a band."""
    values = np.arange(1 << _WIDTH, dtype=np.int64)
    yield from values[np.bitwise_count(values) <= radius]
