"""Sets with an annotation file for each picture, told to belong together by their names."""

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
    pictures: Iterable[UPath],
    annotations: Iterable[UPath],
    read: Callable[[UPath, SkippedItems], dict[str, Any]],
    *,
    prefix: str = "",
    optional: bool = False,
) -> Iterator[Record]:
    """Yield a record for each picture and for each annotation without one, in order of the pictures' names.

    Args:
        root: of the set; names are as seen from it, and a folder's name may give the split.
        read: gives an annotation's columns, and adds what it must leave out to the list; raises RecordError.
        prefix: what an annotation's stem may begin with (`gt_`).
        optional: whether a picture may have no annotation; otherwise that is its fault.
    """
    for name, picture, annotation in _pair_files(root, pictures, annotations, prefix):
        values: dict[str, Any] = {"image": name, "split": split_from_folders(name)}
        refused: SkippedItems = []
        fault = None
        try:
            if picture is None:
                raise RecordError("no such file", f"no picture for {name}")
            if annotation is not None:
                values |= read(annotation, refused)
            elif not optional:
                raise RecordError("no annotation", f"no file is named like {name}")
        except RecordError as reason:
            fault = reason
        source = root.absolute().name
        yield Record(location=name, source=source, values=values, folders=[root], error=fault, skipped=refused)


def _pair_files(
    root: UPath, pictures: Iterable[UPath], annotations: Iterable[UPath], prefix: str
) -> Iterator[tuple[str, UPath | None, UPath | None]]:
    """Files of one stem belong together; where several have it (training, test), those that stand nearest."""
    waiting: dict[str, list[UPath]] = defaultdict(list)
    for annotation in annotations:
        waiting[annotation.stem.removeprefix(prefix)].append(annotation)
    for picture in pictures:
        near = min(waiting[picture.stem], key=lambda file: _distance(file, picture), default=None)
        if near is not None:
            waiting[picture.stem].remove(near)
        yield relative_name(picture, root), picture, near
    for rest in waiting.values():
        for annotation in rest:
            yield relative_name(annotation, root), None, annotation


def _distance(one: UPath, other: UPath) -> tuple[int, str]:
    """How many folders apart they are, counting those that differ in either's path."""
    a, b = PurePosixPath(str(one)).parent.parts, PurePosixPath(str(other)).parent.parts
    shared = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return len(a) + len(b) - 2 * shared, str(one)
