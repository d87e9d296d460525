"""Decontamination: find training rows with an image of an evaluation set.

Evaluation sets are datasets of any schema, or folders of images. An image of a training row is contaminated if it is a
near duplicate of an evaluation image, by the same rule that finds near duplicates within a set. A row that was made
from a pair of an evaluation set is contaminated too, even if its image differs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from vlmflow.artifacts.dataset import Dataset
from vlmflow.artifacts.files import walk
from vlmflow.errors import DataError
from vlmflow.images import image_statistics, near_duplicates
from vlmflow.images.decoding import IMAGE_SUFFIXES
from vlmflow.images.near_duplicates import MAX_CELL_DIFFERENCE, PHASH_DISTANCE, Cells, ImageSet

BATCH = 512  # images in memory at a time


@dataclass(frozen=True)
class EvaluationImages:
    """The M decodable images of the evaluation sets."""

    images: ImageSet
    names: list[str]  # set and uid, or set and file
    uids: frozenset[str]  # of the pairs in the sets, or from which their rows were made


@dataclass(frozen=True)
class Leak:
    """A training row that must not be used."""

    uid: str
    evaluation_image: str  # set and uid, or set and file
    difference: float  # levels; see `near_duplicates.cell_difference`


def load_evaluation_images(paths: tuple[str, ...]) -> EvaluationImages:
    """Fingerprint the images of evaluation sets: the test split of a dataset, or all rows if it has none.

    Raises:
        DataError: the path does not exist, or has no readable image.
    """
    sets, names, uids = [], [], set()
    for path in paths:
        seen = _fingerprint(iter_evaluation_images(path))
        if not seen.readable.any():
            raise DataError(f"decontaminate {path}: no readable image; give a dataset's folder or a folder of images")
        sets.append(_subset(seen.images, seen.readable, test=True))
        names += [f"{path} {name}" for name, readable in zip(seen.names, seen.readable, strict=True) if readable]
        uids |= set(seen.pairs) - {""}
    return EvaluationImages(reduce(_concat, sets), names, frozenset(uids))


def match_images(
    seen: ImageSet,
    evaluation: EvaluationImages,
    phash_distance: int = PHASH_DISTANCE,
    max_cell_difference: float = MAX_CELL_DIFFERENCE,
) -> tuple[np.ndarray, np.ndarray]:
    """Return for N images the index of the matching evaluation image or -1, (N,), and their difference, (N,)."""
    count = len(seen.hashes)
    both = _concat(_subset(seen, np.arange(count), test=False), evaluation.images)
    found = near_duplicates.find_duplicates(both, phash_distance, max_cell_difference)[0][:count]
    apart = np.full(count, np.nan)
    rows = np.flatnonzero(found >= 0)
    apart[rows] = near_duplicates.cell_difference(both.cells, rows, found[rows])
    return np.where(found >= 0, found - count, -1), apart


def find_leaks(
    data: Dataset,
    evaluation: EvaluationImages,
    phash_distance: int = PHASH_DISTANCE,
    max_cell_difference: float = MAX_CELL_DIFFERENCE,
) -> list[Leak]:
    """Return the training rows of `data`, of any schema, with an evaluation image or made from an evaluation pair."""
    seen, found = _fingerprint(_iter_training_images(data)), {}
    places, apart = match_images(seen.images, evaluation, phash_distance, max_cell_difference)
    for row, uid in enumerate(seen.names):
        if seen.readable[row] and places[row] >= 0:
            found.setdefault(uid, Leak(uid, evaluation.names[places[row]], float(apart[row])))
        elif seen.pairs[row] in evaluation.uids:
            found.setdefault(uid, Leak(uid, f"pair {seen.pairs[row]}", 0.0))
    return list(found.values())


def iter_evaluation_images(path: str) -> Iterator[tuple[str, str, bytes]]:
    """Yield name, pair uid and encoded bytes of each evaluation image."""
    folder = Path(path)
    if (folder / "card.json").exists():
        data = Dataset(folder)
        kind = "uid" if data.card.schema == "pairs" else "pair"
        split = "test" if "test" in data.table(["split"])["split"].to_pylist() else "train"
        for row in data.rows():
            if row["split"] == split:
                for image in _images(row):
                    yield row["uid"], row[kind], image
    elif folder.is_dir():
        for file in walk(folder):
            if file.suffix.lower() in IMAGE_SUFFIXES:
                yield str(file.relative_to(str(folder))), "", file.read_bytes()
    else:
        raise DataError(f"decontaminate {path}: no such folder; give a dataset's folder or a folder of images")


def _iter_training_images(data: Dataset) -> Iterator[tuple[str, str, bytes]]:
    kind = "uid" if data.card.schema == "pairs" else "pair"
    for row in data.rows():
        if row["split"] == "train":
            for image in _images(row) or [b""]:
                yield row["uid"], row[kind], image


def _images(row: dict[str, Any]) -> list[bytes]:
    images = [row["image"]] if "image" in row else row["images"]
    return [image["bytes"] for image in images if image and image["bytes"]]


@dataclass(frozen=True)
class _Fingerprints:
    """The fingerprints of N images."""

    names: list[str]
    pairs: list[str]
    readable: np.ndarray  # (N,) bool; unreadable images count as black and must be ignored
    images: ImageSet


def _fingerprint(content: Iterator[tuple[str, str, bytes]]) -> _Fingerprints:
    names, pairs, readable, parts = [], [], [], [image_statistics.compute_statistics([])]
    while batch := list(islice(content, BATCH)):
        with image_statistics.ignore_pillow_warnings():
            seen = [image_statistics.read_thumbnail(data) for _, _, data in batch]
        names += [name for name, _, _ in batch]
        pairs += [pair for _, pair, _ in batch]
        readable += [not image.reason for image in seen]
        parts.append(image_statistics.compute_statistics(seen))
    hashes, signatures, coarse = (
        np.concatenate([getattr(p, kind) for p in parts]) for kind in ("hashes", "signatures", "coarse")
    )
    none = np.zeros(len(names), dtype=np.int64)
    seen = ImageSet(hashes, signatures, coarse, Cells([p.cells for p in parts]), none, none.astype(bool))
    return _Fingerprints(names, pairs, np.array(readable, dtype=bool), seen)


def _subset(seen: ImageSet, rows: np.ndarray, test: bool) -> ImageSet:
    """Return the images at `rows` as one group, with `is_test` set to `test`."""
    hashes = seen.hashes[rows]
    plain = np.zeros(len(hashes), dtype=np.int64), np.full(len(hashes), test)
    return ImageSet(hashes, seen.signatures[rows], seen.coarse[rows], seen.cells.view(rows), *plain)


def _concat(one: ImageSet, other: ImageSet) -> ImageSet:
    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(one, name), getattr(other, name)])

    names = ("hashes", "signatures", "coarse", "groups", "is_test")
    return ImageSet(**{name: joined(name) for name in names}, cells=one.cells + other.cells)
