"""The `coco` source: one JSON document with `images`, `annotations` and `categories`.

    {"images":      [{"id": 1, "file_name": "000000000001.jpg", "width": 640, "height": 480, …}],
     "annotations": [{"id": 7, "image_id": 1, "category_id": 18, "bbox": [x, y, width, height], "iscrowd": 0}],
     "categories":  [{"id": 18, "name": "dog"}]}

Annotations with a `caption` alone become captions, each of which makes a pair. Annotations with a `bbox` in pixels
become regions; their phrase is their own `caption`, or the name of their category. The split is that of the folder in
`file_name`, or of the document's name (`instances_val2017.json`). Source: Lin et al. 2014; the data format on the COCO
site.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from upath import UPath

from components.ingest.columns import ColumnsConfig
from components.ingest.filesystem import open_path, relative_name, split_from_folders, split_from_word
from components.ingest.json_files import stream_json
from components.ingest.record import Record, malformed
from vlmflow.artifacts.files import describe_missing, walk
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
XYWH_PIXELS = 1  # detectron2's bbox_mode


class CocoReader:
    """Read a folder of images and a COCO annotation file.

    Args:
        path: the folder, or the annotation file.
        index: the annotation file in the folder; "" uses the only one in it or in its `annotations` folder.

    Raises:
        DataError: there is no such file, or several; or it is not a COCO document.
    """

    def __init__(self, path: str, index: str = ""):
        root = open_path(path)
        if root.is_file():
            root, index = root.parent, root.name
        self.root, self.index = root, root / (index or _find_index(root))
        if not self.index.is_file():
            raise DataError(f"ingest.index: no such file: {describe_missing(index, [root])}")
        self.annotations = Annotations(self.index)
        self.class_names = set(self.annotations.categories.values())

    def columns(self, wanted: ColumnsConfig) -> ColumnsConfig:
        """Return the fixed mapping of the format."""
        captioned = "caption" if self.annotations.captions else ""
        return ColumnsConfig(image="image", caption=captioned, boxes="boxes", box_format="xywh", split="split")

    def records(self) -> Iterator[Record]:
        """Stream the images in the order of the document."""
        known, folders, name = self.annotations, image_folders(self.root, self.index), self.root.absolute().name
        split = _split_of(self.index, self.root)
        images = list(stream_entries(self.index, "images", "id"))
        counts = Counter(entry["id"] for entry, _ in images)
        for image, fault in images:
            number = image["id"]
            if counts[number] > 1:
                fault = RecordError("ambiguous id", f"{counts[number]} entries of `images` have the id {number!r}")
            yield Record(
                location=f"{self.index.name}:{number}",
                source=name,
                values={
                    "image": image.get("file_name"),
                    "width": image.get("width"),
                    "height": image.get("height"),
                    "split": split_from_folders(str(image.get("file_name"))) or split,
                    "caption": known.captions.get(number, []),
                    "boxes": [known.region(one) for one in known.boxes.get(number, [])],
                },
                folders=folders,
                error=fault,
                skipped=[("regions", reason) for reason in known.skipped.get(number, [])],
            )
        for lost in dict.fromkeys([*known.boxes, *known.captions, *known.skipped]):
            if lost not in counts:
                fault = RecordError("no image", f"annotations of image {lost!r}, which is not in `images`")
                yield Record(location=f"{self.index.name}:{lost}", source=name, error=fault)


class Annotations:
    """The annotations of a document by image id, without the masks, which take most of its size.

    Raises:
        DataError: the file is not a COCO document.
    """

    def __init__(self, index: UPath):
        self.categories = read_categories(index)
        self.boxes: dict[Any, list[tuple[Any, str, Any, Any]]] = defaultdict(list)  # id, caption, category, bbox
        self.captions: dict[Any, list[str]] = defaultdict(list)
        self.skipped: dict[Any, list[RecordError]] = defaultdict(list)
        counts: Counter[Any] = Counter()
        for entry, fault in stream_entries(index, "annotations", "image_id"):
            image, number = entry["image_id"], entry.get("id")
            counts[number] += 1
            if fault is None and "caption" in entry and "bbox" not in entry:
                self.captions[image].append(entry["caption"])
            elif reason := fault or self._refusal(entry):
                self.skipped[image].append(RecordError(reason.kind, f"annotation {number!r}: {reason.detail}"))
            else:
                words = str(entry.get("caption") or "")
                self.boxes[image].append((number, words, entry.get("category_id"), entry["bbox"]))
        if not counts:
            raise DataError(
                f"{index}: not a COCO document: `annotations` is missing or empty; set ingest.index to another file"
            )
        self._refuse_repeated({number for number, count in counts.items() if count > 1 and number is not None})

    def region(self, box: tuple[Any, str, Any, Any]) -> dict[str, Any]:
        """Return an entry of `boxes` as an item of the boxes column."""
        number, words, category, bbox = box
        name = self.categories.get(category, "")
        return {"phrase": words or name, "category": name, "bbox": bbox, "at": f"annotation {number!r}"}

    def _refusal(self, entry: dict[str, Any]) -> RecordError | None:
        """Return why an annotation cannot be a region, or None."""
        category, attributes = entry.get("category_id"), entry.get("attributes")
        if entry.get("iscrowd"):
            return RecordError("crowd", "the box covers a group of objects (iscrowd)")
        if "bbox" not in entry:
            return RecordError("no box", f"no bbox among {', '.join(entry)}")
        if entry.get("bbox_mode", XYWH_PIXELS) != XYWH_PIXELS:
            return RecordError(
                "invalid box", f"bbox_mode is {entry['bbox_mode']!r}; only 1 (x, y, width, height) is read"
            )
        if isinstance(attributes, dict) and attributes.get("rotation"):
            return RecordError("rotated box", f"rotation is {attributes['rotation']!r}; only upright boxes can be used")
        if category is not None and category not in self.categories:
            return RecordError("unknown category", f"category_id {category!r} is not in `categories`")
        return None

    def _refuse_repeated(self, repeated: set[Any]) -> None:
        """Refuse the boxes whose ids occur twice: of a merge that joined two documents, either may be meant."""
        for image, boxes in self.boxes.items() if repeated else ():
            fault = "its id occurs more than once in `annotations`; give each annotation its own"
            self.skipped[image] += [
                RecordError("ambiguous id", f"annotation {box[0]!r}: {fault}") for box in boxes if box[0] in repeated
            ]
            self.boxes[image] = [box for box in boxes if box[0] not in repeated]


def read_categories(index: UPath) -> dict[Any, str]:
    """Return the names of the categories by id.

    Raises:
        DataError: two categories have one id.
    """
    names: dict[Any, str] = {}
    for entry, fault in stream_entries(index, "categories", "id", "name"):
        number, name = entry["id"], str(entry["name"])
        if fault or names.setdefault(number, name) != name:
            reason = str(fault or f"category {number!r} is {names[number]!r} and {name!r}")
            raise DataError(f"{index}: `categories`: {reason}; correct the document")
    return names


def stream_entries(index: UPath, what: str, *keys: str) -> Iterator[tuple[dict[str, Any], RecordError | None]]:
    """Stream the list `what` of the document, and for each entry the error if it is not valid.

    An id written as 1, 1.0 or "1" is the same id.

    Raises:
        DataError: an entry has no number or string under one of `keys`.
    """
    for entry, fault in stream_json(index, what):
        if not (isinstance(entry, dict) and all(isinstance(entry.get(key), int | float | str) for key in keys)):
            raise DataError(f"{index}: an entry of `{what}` has no {' and '.join(keys)}: {entry!r:.80}")
        for key in ("id", "image_id", "category_id"):
            if isinstance(entry.get(key), list | dict | bool):
                fault, entry[key] = malformed(f"{key} is {entry[key]!r:.40}"), None
            if key in entry:
                entry[key] = _normalise_id(entry[key])
        yield entry, fault


def image_folders(root: UPath, index: UPath) -> list[UPath]:
    """Return the existing folders in which a COCO-like set usually keeps its images, nearest first.

    Folders of another split than that of the document's name are left out.
    """
    near = [root, *(root / name for name in IMAGE_FOLDERS), *(root / "images" / name for name in IMAGE_FOLDERS[1:])]
    mscoco = [root.parent / "images" / "mscoco" / "images" / "train2014", root.parent / "train2014"]
    found = [folder for folder in dict.fromkeys([*near, index.parent, *mscoco]) if folder.is_dir()]
    split = _split_of(index, root)
    return [folder for folder in found if not split or folder == root or split_from_word(folder.name) in ("", split)]


def _split_of(index: UPath, root: UPath) -> str:
    return split_from_word(index.stem) or split_from_folders(relative_name(index, root))


def _normalise_id(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():  # written by pandas
        return int(value)
    if isinstance(value, str) and value.isascii() and value.isdigit() and str(int(value)) == value:
        return int(value)
    return value


def _find_index(root: UPath) -> str:
    folders = [folder for folder in (root, root / "annotations") if folder.is_dir()]
    found = [file for folder in folders for file in walk(folder, depth=1) if file.suffix.lower() == ".json"]
    if len(found) != 1:
        names = ", ".join(relative_name(file, root) for file in found) or "none"
        raise DataError(f"ingest.path: {str(root)!r}: expected one *.json, found: {names}; set ingest.index")
    return relative_name(found[0], root)
