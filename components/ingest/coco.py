"""The `coco` source: one JSON document with `images`, `annotations` and `categories`.

    {"images":      [{"id": 1, "file_name": "000000000001.jpg", …}],
     "annotations": [{"id": 7, "image_id": 1, "category_id": 18, "bbox": [x, y, width, height], "iscrowd": 0}],
     "categories":  [{"id": 18, "name": "dog"}]}

Annotations with a `caption` become captions, each of which makes a pair. Annotations with a `bbox` in pixels become
regions named by their category. Source: Lin et al. 2014; the data format on the COCO site.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from upath import UPath

from components.ingest.columns import ColumnsConfig
from components.ingest.filesystem import open_path
from components.ingest.json_files import stream_json
from components.ingest.record import Record
from vlmflow.errors import DataError, RecordError

IMAGE_FOLDERS = (
    "images",
    "train2017",
    "val2017",
    "test2017",
    "train2014",
    "val2014",
    "test2014",
    "train",
    "val",
    "test",
)


class CocoReader:
    """Read a folder of images and a COCO annotation file.

    Args:
        path: the folder, or the annotation file.
        index: the annotation file in the folder; "" uses the only one in it or in its `annotations` folder.

    Raises:
        DataError: there is no such file, or several.
    """

    def __init__(self, path: str, index: str = ""):
        root = open_path(path)
        if root.is_file():
            root, index = root.parent, root.name
        self.root, self.index = root, root / (index or _find_index(root))
        if not self.index.is_file():
            raise DataError(f"ingest.index: {index!r}: no such file in {path!r}")
        self.annotations = Annotations(self.index)

    def columns(self, wanted: ColumnsConfig) -> ColumnsConfig:
        """Return the fixed mapping of the format."""
        captioned = "caption" if self.annotations.captions else ""
        return ColumnsConfig(image="image", caption=captioned, boxes="boxes", box_format="xywh")

    def records(self) -> Iterator[Record]:
        """Stream the images in the order of the document."""
        known, folders, name = self.annotations, image_folders(self.root, self.index), self.root.absolute().name
        seen = set()
        for image in stream_entries(self.index, "images", "id"):
            number = image["id"]
            seen.add(number)
            yield Record(
                location=f"{self.index.name}:{number}",
                source=name,
                values={
                    "image": image.get("file_name"),
                    "caption": known.captions.get(number, []),
                    "boxes": [{"label": known.category(one), "bbox": box} for one, box in known.boxes.get(number, [])],
                },
                folders=folders,
                skipped=[("regions", RecordError("crowd", "the box covers a group of objects (iscrowd)"))]
                * known.crowds.get(number, 0),
            )
        for lost in dict.fromkeys([*known.boxes, *known.captions]):
            if lost not in seen:
                fault = RecordError("no image", f"annotations of image {lost!r}, which is not in `images`")
                yield Record(location=f"{self.index.name}:{lost}", source=name, error=fault)


class Annotations:
    """The annotations of a document by image id, without the masks, which take most of its size.

    Raises:
        DataError: the file is not a COCO document.
    """

    def __init__(self, index: UPath):
        self.categories = {
            entry["id"]: str(entry["name"]) for entry in stream_entries(index, "categories", "id", "name")
        }
        self.boxes: dict[Any, list[tuple[Any, Any]]] = defaultdict(list)
        self.captions: dict[Any, list[str]] = defaultdict(list)
        self.crowds: dict[Any, int] = defaultdict(int)
        empty = True
        for entry in stream_entries(index, "annotations", "image_id"):
            empty = False
            if "caption" in entry:
                self.captions[entry["image_id"]].append(entry["caption"])
            elif entry.get("iscrowd"):
                self.crowds[entry["image_id"]] += 1
            elif "bbox" in entry:
                self.boxes[entry["image_id"]].append((entry.get("category_id"), entry["bbox"]))
        if empty:
            raise DataError(
                f"{index}: not a COCO document: `annotations` is missing or empty; set ingest.index to another file"
            )

    def category(self, number: Any) -> str:
        """Return the name of a category; its id if the document does not name it."""
        return self.categories.get(number, "" if number is None else str(number))


def stream_entries(index: UPath, what: str, *keys: str) -> Iterator[dict[str, Any]]:
    """Stream the list `what` of the document.

    Raises:
        DataError: an entry has no integer or string under one of `keys`.
    """
    for entry, fault in stream_json(index, what):
        if fault:
            raise DataError(f"{index}: an entry of `{what}` cannot be read: {fault}")
        if not (isinstance(entry, dict) and all(isinstance(entry.get(key), int | str) for key in keys)):
            raise DataError(f"{index}: an entry of `{what}` has no {' and '.join(keys)}: {entry!r:.80}")
        yield entry


def image_folders(root: UPath, index: UPath) -> list[UPath]:
    """Return the existing folders in which a COCO-like set usually keeps its images, nearest first."""
    near = [root, *(root / name for name in IMAGE_FOLDERS), *(root / "images" / name for name in IMAGE_FOLDERS[1:])]
    mscoco = [root.parent / "images" / "mscoco" / "images" / "train2014", root.parent / "train2014"]
    return [folder for folder in dict.fromkeys([*near, index.parent, *mscoco]) if folder.is_dir()]


def _find_index(root: UPath) -> str:
    found = sorted([*root.glob("*.json"), *root.glob("annotations/*.json")], key=str)
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise DataError(f"ingest.path: {str(root)!r}: expected one *.json, found: {names}; set ingest.index")
    return str(found[0].relative_to(root))
