"""Altered copies: an image of the test split that was mirrored, turned, cropped, framed, brightened or made grey.

The near-duplicate rule compares cell by cell, so it finds copies of other sizes and encodings only. Here each image is
compared with views of the other one: its eight orientations, and crops of its centre and corners. The descriptor of a
view is its brightness, 16 × 16, with mean 0 and norm 1, so that brightness and contrast do not matter. A uniform frame
is cut off first. Where both images have colour, the colours must agree too.

A crop that lies elsewhere than these views is found if it covers nearly the same part. This compares every image with
every test image: N · M · 48 products of 256 numbers.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np

SIDE = 32  # of a small image, px
GRID, COLOUR_GRID = 16, 8  # cells per side, of brightness and of colour
FRAME = 12  # levels; the pixels of a frame differ from its corner by no more
FLAT = 4.0  # grey levels; an image with less contrast is not compared
GREY = 2.0  # levels; mean colour below which an image counts as grey
SAME_COLOURS = 0.8  # smallest cosine of the colours of two views
BLOCK = 1024  # training images at a time

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 as shares of the sides
View = tuple[int, bool, Box]  # quarter turns, mirrored or not, and the part that is shown

_WHOLE: Box = (0, 0, 1, 1)
_CROPS: list[Box] = [
    *((x, y, x + size, y + size) for size in (0.9, 0.8) for x in (0, 1 - size) for y in (0, 1 - size)),
    (0.05, 0.05, 0.95, 0.95),
    (0.1, 0.1, 0.9, 0.9),
]
_UPRIGHT: list[View] = [(0, False, _WHOLE)]
_ORIENTATIONS: list[View] = [(turns, mirrored, _WHOLE) for turns, mirrored in product(range(4), (False, True))]
_PARTS: list[View] = [(0, mirrored, box) for box, mirrored in product(_CROPS, (False, True))]


@dataclass(frozen=True)
class AlteredCopies:
    """For N images: the test image that each is an altered copy of, (N,) indices or -1, and the similarity, (N,)."""

    of: np.ndarray
    similarity: np.ndarray


def small_images(thumbnails: np.ndarray) -> np.ndarray:
    """Return (N, 32, 32, 3) uint8 Y, Cb, Cr from square thumbnails, (N, S, S, 3) uint8, with uniform frames cut off."""
    found = np.zeros((len(thumbnails), SIDE, SIDE, 3), np.uint8)
    for number, image in enumerate(thumbnails):
        across, down = (_averaging(first, last, SIDE, len(image)) for first, last in _inside_frame(image))
        found[number] = np.einsum("ry,yxc,qx->rqc", down, image.astype(np.float32), across, optimize=True)
    return found


def find_altered_copies(train: np.ndarray, test: np.ndarray, min_similarity: float) -> AlteredCopies:
    """Find the images of `train`, (N, 32, 32, 3), that are altered copies of one of `test`, (M, 32, 32, 3).

    Args:
        train, test: from `small_images`.
        min_similarity: smallest correlation of the brightness of two views.
    """
    of, best = np.full(len(train), -1), np.full(len(train), np.nan)
    if not len(test):
        return AlteredCopies(of, best)
    for test_views, train_views in ((_ORIENTATIONS + _PARTS, _UPRIGHT), (_UPRIGHT, _PARTS)):
        described = [(view, _brightness(test, view)) for view in test_views]
        for start in range(0, len(train), BLOCK):
            block = train[start : start + BLOCK]
            for mine, (theirs, others) in product(train_views, described):
                similarity = _brightness(block, mine) @ others.T
                for i, j in np.argwhere(similarity >= min_similarity).tolist():
                    row, value = start + i, float(similarity[i, j])
                    if not value <= best[row] and _same_colours(block[i], mine, test[j], theirs):
                        of[row], best[row] = j, value
    return AlteredCopies(of, best)


def _brightness(images: np.ndarray, view: View) -> np.ndarray:
    """Describe a view of (N, 32, 32, 3) images: (N, 256), mean 0 and norm 1; zeros for a flat image."""
    luma = _show(images[..., :1].astype(np.float32), view, GRID).reshape(len(images), -1)
    luma = luma - luma.mean(1, keepdims=True)
    norm = np.linalg.norm(luma, axis=1, keepdims=True)
    return np.where(norm < FLAT * GRID, 0, luma / np.maximum(norm, 1e-6))  # norm = standard deviation · √256


def _same_colours(one: np.ndarray, view: View, other: np.ndarray, other_view: View) -> bool:
    """Whether the colours of two views agree; those of a grey image agree with any."""
    a, b = (
        _show(image[None, ..., 1:].astype(np.float32), shown, COLOUR_GRID).ravel() - 128
        for image, shown in ((one, view), (other, other_view))
    )
    if min(np.abs(a).mean(), np.abs(b).mean()) < GREY:
        return True
    return float(a @ b) >= SAME_COLOURS * float(np.linalg.norm(a) * np.linalg.norm(b))


def _show(images: np.ndarray, view: View, grid: int) -> np.ndarray:
    """Return a view of (N, 32, 32, C) images, averaged over grid × grid cells: (N, grid, grid, C)."""
    turns, mirrored, (x0, y0, x1, y1) = view
    across, down = (_averaging(first * SIDE, last * SIDE, grid, SIDE) for first, last in ((x0, x1), (y0, y1)))
    cells = np.matmul(down, (images.transpose(0, 3, 1, 2) @ across.T)).transpose(0, 2, 3, 1)
    cells = cells[:, :, ::-1] if mirrored else cells
    return np.rot90(cells, turns, axes=(1, 2))


def _averaging(first: float, last: float, parts: int, size: int) -> np.ndarray:
    """(parts, size) weights that average the pixels from `first` to `last` over equal stretches."""
    edges = np.linspace(first, last, parts + 1)[:, None]
    covered = np.clip(edges - np.arange(size), 0, 1)
    return ((covered[1:] - covered[:-1]) * parts / (last - first)).astype(np.float32)


def _inside_frame(image: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the columns and the rows, first and last + 1, inside a frame of one colour.

    All, if the four corners differ, or little is left inside.
    """
    size = len(image)
    if np.ptp(image[:: size - 1, :: size - 1].reshape(4, 3), axis=0).max() > FRAME:
        return (0, size), (0, size)
    differs = (np.abs(image.astype(np.int16) - image[0, 0]) > FRAME).any(axis=2)
    inside = [np.flatnonzero(differs.any(axis=axis)) for axis in (0, 1)]
    if min(map(len, inside)) < size // 4:
        return (0, size), (0, size)
    columns, rows = ((int(found[0]), int(found[-1]) + 1) for found in inside)
    return columns, rows
