"""Duplicates: the same pair twice, the same image in another size or file, or an image of the test set.

A perceptual hash proposes candidates, the pixels decide. `near_pairs` finds every pair of images within a Hamming
distance of their dHashes, exactly, and keeps the pairs whose small versions agree in every cell. The hash alone merges
different images of one layout (a red heart and a blue one have the same dHash).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

PHASH_DISTANCE, MAX_CELL_DIFFERENCE = 8, 16.0  # by default; images with the same pixels are always within these
BANDS = 4  # of 16 bits each
_WIDTH = 64 // BANDS
_CHUNK = 1 << 20  # candidate pairs in memory at a time


@dataclass(frozen=True)
class ImageSet:
    """N images, in order of preference: of duplicates the first is kept."""

    hashes: np.ndarray  # (N,) uint64 dHashes
    signatures: np.ndarray  # (N,) 16 bytes: digest of hash and cells
    coarse: np.ndarray  # (N, 48) uint8 means of 4 × 4 cells, colour halved, rounded down
    cells: "Cells"
    groups: np.ndarray  # (N,) int: only images of one group are duplicates of each other
    is_test: np.ndarray  # (N,) bool: of the test split


class Cells:
    """(N, 768) uint8, mean Y, Cb and Cr of each of 16 × 16 cells of N images, in parts that are not copied.

    Args:
        parts: arrays, such as memory-mapped files, of which only the used rows are read.
        rows: indices into the concatenated parts, in this order; None uses all rows.
    """

    def __init__(self, parts: Sequence[np.ndarray], rows: np.ndarray | None = None):
        self.parts, self.starts = parts, np.cumsum([0, *(len(part) for part in parts)])
        self.rows = np.arange(self.starts[-1]) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """Return a copy of the cells at M indices, (M, 768)."""
        rows = self.rows[indices]
        found, part = np.empty((len(rows), 768), np.uint8), np.searchsorted(self.starts, rows, "right") - 1
        for number in np.unique(part):
            here = part == number
            found[here] = self.parts[number][rows[here] - self.starts[number]]
        return found

    def view(self, indices: np.ndarray) -> "Cells":
        """Return the cells at `indices` without copying."""
        return Cells(self.parts, self.rows[indices])

    def __add__(self, other: "Cells") -> "Cells":
        return Cells([*self.parts, *other.parts], np.concatenate([self.rows, other.rows + self.starts[-1]]))


def first_occurrences(keys: list[bytes]) -> np.ndarray:
    """Return for each key the index of its first occurrence, or -1 if it is the first, (N,)."""
    first: dict[bytes, int] = {}
    indices = np.array([first.setdefault(key, index) for index, key in enumerate(keys)], dtype=np.int64)
    return np.where(indices == np.arange(len(keys)), -1, indices)


def find_duplicates(images: ImageSet, phash_distance: int, max_cell_difference: float) -> tuple[np.ndarray, np.ndarray]:
    """Find for each training image its duplicate in the test split, and for others the earlier one of their group.

    Args:
        phash_distance: maximum Hamming distance of the hashes of duplicates.
        max_cell_difference: maximum difference of any of their cells; see `cell_difference`.

    Returns:
        leaks: (N,) indices, or -1. copies: (N,) indices, or -1; undefined for leaked images.
    """
    count = len(images.hashes)
    like, first, second = _near_leaders(images, phash_distance, max_cell_difference)
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


def find_exact_leaks(images: ImageSet, pixel_digests: Callable[[list[int]], dict[int, bytes]]) -> np.ndarray:
    """Find for each training image one with the same decoded pixels in the test split: (N,) indices, or -1.

    The files may differ, as those of a PNG and of the JPEG that it was made from. Only images that are near duplicates
    are decoded in full.

    Args:
        pixel_digests: returns the digest of the decoded pixels of each of some images, by index.
    """
    like, first, second = _near_leaders(images, PHASH_DISTANCE, MAX_CELL_DIFFERENCE)
    crossing = images.is_test[first] != images.is_test[second]
    near = np.isin(np.where(like < 0, np.arange(len(like)), like), np.concatenate([first[crossing], second[crossing]]))
    digests = pixel_digests(np.flatnonzero(near).tolist())
    in_test = {digest: index for index, digest in digests.items() if images.is_test[index]}
    leaks = np.full(len(like), -1)
    for index, digest in digests.items():
        if not images.is_test[index]:
            leaks[index] = in_test.get(digest, -1)
    return leaks


def _near_leaders(
    images: ImageSet, phash_distance: int, max_cell_difference: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each image the first one that looks exactly like it or -1, and the near pairs of these first ones."""
    # Images with equal signatures are compared once: a placeholder may occur ten thousand times.
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
    first, second = near_pairs(*of_leaders, phash_distance, max_cell_difference)
    return like, leaders[first], leaders[second]


def near_pairs(
    hashes: np.ndarray, coarse: np.ndarray, cells: Cells, phash_distance: int, max_cell_difference: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of all near pairs, (M,) first < (M,) second, sorted by second and then first."""
    columns = np.ascontiguousarray(coarse.T)
    found = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
    for first, second in _candidates(hashes, phash_distance):
        # Means of 4 × 4 cells, rounded down, differ by less than 1 more than the cells: no pair is missed.
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
    """Return the largest difference of any cell in brightness, or half of that in colour, (M,), in levels of 0-255.

    The maximum, not the mean: two images of a clock at different hours differ in few cells. Half for colour, because
    JPEG stores colour at half the resolution.
    """
    apart = np.empty(len(first))
    for start in range(0, len(first), 1024):
        part = slice(start, start + 1024)
        one, other = cells[first[part]], cells[second[part]]
        delta = np.maximum(one, other) - np.minimum(one, other)  # (m, 768) uint8, so that it does not wrap
        apart[part] = np.maximum(delta[:, :256].max(axis=1), delta[:, 256:].max(axis=1) / 2)
    return apart


def _keep_first(count: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return for each image the earlier kept one that it duplicates, or -1; duplicates of dropped images are kept."""
    copies = np.full(count, -1)
    for i, j in zip(first.tolist(), second.tolist(), strict=True):
        if copies[j] < 0 and copies[i] < 0:
            copies[j] = i
    return copies


def _candidates(hashes: np.ndarray, bits: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield every pair (first < second) of hashes within `bits` exactly once.

    If two hashes differ in at most `bits` bits, then one of the `BANDS` bands differs in at most
    bits // BANDS. So each band is looked up at all values within that radius, and the first matching band counts.
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
    """Yield each row with every member of its wanted bucket, about `_CHUNK` pairs at a time."""
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
    """Yield every pattern of at most `radius` flipped bits of a band."""
    values = np.arange(1 << _WIDTH, dtype=np.int64)
    yield from values[np.bitwise_count(values) <= radius]
