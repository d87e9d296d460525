"""Formats with one annotation file per image, matched by file name."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

from upath import UPath

from components.ingest.filesystem import relative_name, split_from_folders
from components.ingest.record import Record
from vlmflow.errors import RecordError

SkippedItems = list[tuple[str, RecordError]]


def paired_records(
    root: UPath,
    images: Iterable[UPath],
    annotations: Iterable[UPath],
    read: Callable[[UPath, SkippedItems], dict[str, Any]],
    *,
    prefix: str = "",
    optional: bool = False,
) -> Iterator[Record]:
    """Yield a record for each image, in the given order, then for each annotation without an image.

    Args:
        root: root of the dataset; names are relative to it, and a folder name may give the split.
        read: return the columns of an annotation file and append unreadable items to the list; may raise RecordError.
        prefix: optional prefix of the stems of the annotation files (`gt_`).
        optional: accept images without an annotation file; otherwise these get an error.
    """
    for name, image, annotation in _pair_files(root, images, annotations, prefix):
        values: dict[str, Any] = {"image": name, "split": split_from_folders(name)}
        refused: SkippedItems = []
        fault = None
        try:
            if image is None:
                raise RecordError("no such file", f"no image for {name}")
            if annotation is not None:
                values |= read(annotation, refused)
            elif not optional:
                raise RecordError("no annotation", f"no annotation file for {name}")
        except RecordError as reason:
            fault = reason
        source = root.absolute().name
        yield Record(location=name, source=source, values=values, folders=[root], error=fault, skipped=refused)


def _pair_files(
    root: UPath, images: Iterable[UPath], annotations: Iterable[UPath], prefix: str
) -> Iterator[tuple[str, UPath | None, UPath | None]]:
    """Pair files with the same stem; of several candidates (train and test), the one in the nearest folder."""
    waiting: dict[str, list[UPath]] = defaultdict(list)
    for annotation in annotations:
        waiting[annotation.stem.removeprefix(prefix)].append(annotation)
    for image in images:
        near = min(waiting[image.stem], key=lambda file: _distance(file, image), default=None)
        if near is not None:
            waiting[image.stem].remove(near)
        yield relative_name(image, root), image, near
    for rest in waiting.values():
        for annotation in rest:
            yield relative_name(annotation, root), None, annotation


def _distance(one: UPath, other: UPath) -> tuple[int, str]:
    """Return the number of folders in which the two paths differ, and the first path to break ties."""
    a, b = PurePosixPath(str(one)).parent.parts, PurePosixPath(str(other)).parent.parts
    shared = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return len(a) + len(b) - 2 * shared, str(one)
