"""The `coco` source: one JSON document with `images`, `annotations` and `categories`.

Annotations with a `caption` become captions, each a pair; those with a `bbox` ([x, y, width, height], pixels)
become regions that their category names. Source: Lin et al. 2014, the data format of COCO's site.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from upath import UPath

from components.ingest.columns import ColumnsConfig
from components.ingest.filesystem import open_path, stream_json
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
    """A folder of pictures with COCO's JSON in it.

    Args:
        path: the folder, or the JSON itself.
        index: the JSON within the folder; "" takes the only one in it or in its `annotations`.

    Raises:
        DataError: there is no such JSON, or several.
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
        """Return the format's own mapping."""
        captioned = "caption" if self.annotations.captions else ""
        return ColumnsConfig(image="image", caption=captioned, boxes="boxes", box_format="xywh")

    def records(self) -> Iterator[Record]:
        """Stream the pictures in the document's order."""
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
                skipped=[("regions", RecordError("a crowd", "the box holds many of its category"))]
                * known.crowds.get(number, 0),
            )
        for lost in dict.fromkeys([*known.boxes, *known.captions]):
            if lost not in seen:
                fault = RecordError("no picture", f"annotations of image {lost!r}, which the document does not list")
                yield Record(location=f"{self.index.name}:{lost}", source=name, error=fault)


class Annotations:
    """A document's annotations by the id of their picture, without its masks, which are most of it.

    Raises:
        DataError: it is no COCO document.
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
            raise DataError(f"{index}: no COCO document: it has no `annotations`; name another by ingest.index")

    def category(self, number: Any) -> str:
        """The name of a category; its number where the document does not name it."""
        return self.categories.get(number, "" if number is None else str(number))


def stream_entries(index: UPath, what: str, *keys: str) -> Iterator[dict[str, Any]]:
    """Stream one of the document's lists.

    Raises:
        DataError: an entry of it has no number or text under one of `keys`.
    """
    for entry in stream_json(index, f"{what}.item"):
        if not (isinstance(entry, dict) and all(isinstance(entry.get(key), int | str) for key in keys)):
            raise DataError(f"{index}: an entry of `{what}` has no {' and '.join(keys)}: {entry!r:.80}")
        yield entry


def image_folders(root: UPath, index: UPath) -> list[UPath]:
    """Return where the pictures of a COCO-like set usually are, those that exist, the nearest first."""
    near = [root, *(root / name for name in IMAGE_FOLDERS), *(root / "images" / name for name in IMAGE_FOLDERS[1:])]
    mscoco = [root.parent / "images" / "mscoco" / "images" / "train2014", root.parent / "train2014"]
    return [folder for folder in dict.fromkeys([*near, index.parent, *mscoco]) if folder.is_dir()]


def _find_index(root: UPath) -> str:
    found = sorted([*root.glob("*.json"), *root.glob("annotations/*.json")], key=str)
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise DataError(f"ingest.path: {str(root)!r}: one *.json expected, there: {names}; set ingest.index")
    return str(found[0].relative_to(root))
