"""Formats with one annotation file per image, matched by folder and file name.

An image and an annotation file belong together if they have the same stem, and folders that are the same, except that
one folder of each path may name what it holds: `images/train/1.jpg` and `labels/train/1.txt`, `train/img/1.jpg` and
`train/box/1.txt`, `train_images/1.jpg` and `train_labels/1.txt`, `JPEGImages/1.jpg` and `Annotations/1.xml`.
A file of the same name in any other folder belongs to another image.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from upath import UPath

from components.ingest.filesystem import relative_name, split_from_folders
from components.ingest.record import Record
from vlmflow.errors import DataError, RecordError

SkippedItems = list[tuple[str, RecordError]]
Folders = tuple[str, ...]

# Words in the names of folders that say what the files are.
IMAGE_WORDS = frozenset(["images", "image", "imgs", "img", "jpegimages", "jpgs", "pngs", "photos", "pictures"])
ANNOTATION_WORDS = frozenset(
    ["labels", "label", "annotations", "annotation", "anns", "xml", "xmls", "json", "jsons", "txt", "txts", "text",
     "texts", "captions", "caption", "box", "boxes", "bbox", "bboxes", "gt", "gts", "localization", "transcription",
     "yolo", "voc"]
)  # fmt: skip


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

    Raises:
        DataError: `optional`, and no annotation file matches an image, so that every image would have no objects.
    """
    index = _Index(root, list(images), list(annotations), prefix)
    if optional and index.annotations and not index.matched:
        raise DataError(
            f"{root}: none of its {len(index.annotations)} annotation files matches an image: "
            f"{index.describe_image_of(index.annotations[0])}"
        )
    source = root.absolute().name
    for image in index.images:
        name, found, refused = relative_name(image, root), index.annotations_of(image), SkippedItems()
        values: dict[str, Any] = {"image": name, "split": split_from_folders(name)}
        fault = None
        try:
            if len(found) > 1:
                names = " and ".join(relative_name(file, root) for file in found)
                raise RecordError("ambiguous annotation", f"{name} has {len(found)} annotation files: {names}")
            if found and len({str(other.parent) for other in index.matched[found[0]]}) > 1:
                names = " and ".join(relative_name(other, root) for other in index.matched[found[0]])
                raise RecordError("ambiguous annotation", f"{relative_name(found[0], root)} belongs to {names}")
            if found:
                values |= read(found[0], refused)
            elif not optional:
                raise RecordError("no annotation", f"no annotation file for {name}")
        except RecordError as reason:
            fault = reason
        except (OSError, DataError) as error:  # a broken link, no permission, UTF-16
            fault = RecordError("unreadable file", str(error))
        yield Record(location=name, source=source, values=values, folders=[root], error=fault, skipped=refused)
    for annotation in index.annotations:
        if annotation not in index.matched:
            name = relative_name(annotation, root)
            fault = RecordError("no such file", index.describe_image_of(annotation))
            yield Record(location=name, source=source, values={"image": name}, folders=[root], error=fault)


@dataclass
class _Index:
    """Images and annotation files by stem and folders; `matched` holds the images of each annotation file."""

    root: UPath
    images: list[UPath]
    annotations: list[UPath]
    prefix: str
    matched: dict[UPath, list[UPath]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._by_name = {_folded(image.stem): image for image in self.images}
        self._by_place: dict[tuple[str, Folders], list[UPath]] = defaultdict(list)
        for annotation in self.annotations:
            for folders in _without_word(self._folders(annotation), ANNOTATION_WORDS):
                self._by_place[self._stem(annotation), folders].append(annotation)
        for image in self.images:
            for annotation in self.annotations_of(image):
                self.matched.setdefault(annotation, []).append(image)

    def annotations_of(self, image: UPath) -> list[UPath]:
        """Return the annotation files that belong to the image: one, unless it has none or is ambiguous."""
        places = _without_word(self._folders(image), IMAGE_WORDS)
        return list(dict.fromkeys(file for place in places for file in self._by_place.get((image.stem, place), [])))

    def describe_image_of(self, annotation: UPath) -> str:
        """Return that there is no image for the annotation file, and the image with nearly the same name."""
        said = f"no image for {relative_name(annotation, self.root)}"
        near = self._by_name.get(_folded(self._stem(annotation)))
        if near is None:
            return said
        other = "other folders" if near.stem == self._stem(annotation) else "another spelling"
        return f"{said}; {relative_name(near, self.root)} has {other}"

    def _folders(self, file: UPath) -> Folders:
        return PurePosixPath(relative_name(file, self.root)).parent.parts

    def _stem(self, annotation: UPath) -> str:
        return annotation.stem.removeprefix(self.prefix)


def _without_word(folders: Folders, words: frozenset[str]) -> list[Folders]:
    """Return `folders` as they are, and without the word for their content in one of them."""
    found = [folders]
    for i, folder in enumerate(folders):
        parts = re.split(r"([_\-. ]+)", folder)
        if any(part.lower() in words for part in parts):
            kept = "".join(part for part in parts if part.lower() not in words).strip("_-. ")
            found.append((*folders[:i], *([kept] if kept else []), *folders[i + 1 :]))
    return found


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
