import numpy as np
import pytest

from vlmflow.images.image_statistics import duplicate_features
from vlmflow.images.near_duplicates import (
    Cells,
    ImageSet,
    cell_difference,
    find_duplicates,
    first_occurrences,
    near_pairs,
)


def hashes(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64)


@pytest.mark.parametrize("bits", [0, 3, 4, 8, 11])
def test_all_near_hashes_are_found_and_no_other(bits: int) -> None:
    """Against the slow way: every pair compared."""
    generator = np.random.default_rng(1)
    values = hashes(700)
    for row in range(350, 700):  # copies with 0 to 12 flipped bits
        flips = generator.choice(64, generator.integers(0, 13), replace=False).astype(np.uint64)
        values[row] = values[row - 350] ^ np.bitwise_or.reduce(np.uint64(1) << flips, initial=np.uint64(0))
    seen = pictures(values, np.zeros((700, 3, 16, 16), np.uint8))
    first, second = near_pairs(seen.hashes, seen.coarse, seen.cells, bits, 0)
    apart = np.bitwise_count(values[:, None] ^ values[None])
    expected = [(i, j) for j in range(700) for i in range(j) if apart[i, j] <= bits]
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == expected
    assert len(expected) >= 10 * (bits + 1)


def test_the_pixels_decide_between_equal_hashes() -> None:
    """Against the slow way, with differences that lie on both sides of the threshold."""
    generator = np.random.default_rng(0)
    base = generator.integers(60, 180, (1, 3, 16, 16))
    cells = np.clip(base + generator.integers(-14, 15, (60, 3, 16, 16)), 0, 255).astype(np.uint8)
    cells[30:] = np.clip(base + generator.integers(-4, 5, (30, 3, 16, 16)), 0, 255)
    cells[45, 0, 3, 3] += 40  # one cell of 256: the hand of a clock
    seen = pictures(np.zeros(60, np.uint64), cells)
    first, second = near_pairs(seen.hashes, seen.coarse, seen.cells, 8, 16.0)
    wide = cells.astype(int)
    expected = []
    for j in range(60):
        for i in range(j):
            luma, colour = np.abs(wide[i, 0] - wide[j, 0]).max(), np.abs(wide[i, 1:] - wide[j, 1:]).max()
            if max(luma, colour / 2) <= 16:
                expected.append((i, j))
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == expected
    assert len(expected) > 300 and not any(45 in found for found in expected)


def test_difference_does_not_wrap_around() -> None:
    cells = np.zeros((2, 3, 16, 16), np.uint8)
    cells[1, 0, 5, 5], cells[1, 2, 1, 1] = 250, 255
    flat = cells.reshape(2, -1)
    assert cell_difference(Cells([flat]), np.array([0, 1]), np.array([1, 0])).tolist() == [250, 250]
    cells[1, 0] = 0
    assert cell_difference(Cells([flat]), np.array([0]), np.array([1])).tolist() == [127.5]


def test_first_occurrences() -> None:
    assert first_occurrences([b"a", b"b", b"a", b"c", b"b", b"a"]).tolist() == [-1, -1, 0, -1, 1, 0]
    assert first_occurrences([]).tolist() == []


def pictures(
    values: np.ndarray, cells: np.ndarray, groups: list[int] | None = None, test: list[bool] | None = None
) -> ImageSet:
    """In parts of three, as workers leave them."""
    seen, count = duplicate_features(values, cells), len(values)
    parts = [seen["cells"][start : start + 3] for start in range(0, count, 3)] or [seen["cells"]]
    of = np.array(groups or [0] * count, dtype=np.int64), np.array(test or [False] * count)
    return ImageSet(seen["hashes"], seen["signatures"], seen["coarse"], Cells(parts), *of)


def test_cells_are_indexed_across_parts() -> None:
    generator = np.random.default_rng(0)
    flat = generator.integers(0, 256, (20, 768)).astype(np.uint8)
    cells = Cells([flat[:7], flat[7:9], flat[9:12]]) + Cells([flat[12:]])
    rows = generator.permutation(20)[:11]
    assert len(cells) == 20 and (cells[rows] == flat[rows]).all()
    assert (cells.view(rows)[np.array([3, 0])] == flat[rows[[3, 0]]]).all()


def chain(levels: list[int], groups: list[int] | None = None, test: list[bool] | None = None) -> ImageSet:
    """Plain pictures of the given brightness."""
    count = len(levels)
    cells = np.full((count, 3, 16, 16), 128, np.uint8)
    cells[:, 0] = np.array(levels)[:, None, None]
    return pictures(np.zeros(count, np.uint64), cells, groups, test)


def test_duplicates_of_dropped_images_are_kept() -> None:
    leaks, copies = find_duplicates(chain([0, 10, 20, 30, 0]), 8, 10)
    assert copies.tolist() == [-1, 0, -1, 2, 0]
    assert (leaks == -1).all()


def test_groups_and_splits() -> None:
    leaks, copies = find_duplicates(chain([0, 0, 0], groups=[1, 2, 1]), 8, 10)
    assert copies.tolist() == [-1, -1, 0]
    leaks, copies = find_duplicates(chain([0, 5, 0, 50], groups=[1, 2, 1, 1], test=[False, True, False, True]), 8, 10)
    assert leaks.tolist() == [1, -1, 1, -1]


def test_many_equal_images_are_fast() -> None:
    copies = find_duplicates(chain([7] * 10_000), 8, 16)[1]
    assert copies.tolist() == [-1] + [0] * 9_999  # compared pair by pair these are fifty million


def test_no_images() -> None:
    leaks, copies = find_duplicates(pictures(hashes(0), np.zeros((0, 3, 16, 16), np.uint8)), 8, 16)
    assert len(leaks) == len(copies) == 0
