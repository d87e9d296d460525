"""The `voc` source: Pascal VOC, one XML file per image.

    VOC2012/
      JPEGImages/2007_0.jpg
      Annotations/2007_0.xml       <object><name>dog</name><bndbox><xmin>1</xmin>…</bndbox></object>
      ImageSets/Main/train.txt     image names, one per line

Corners are 1-based and inclusive: `xmin` 1 is the left edge, and `xmax` 100 is the right edge of an image of 100
pixels. The split comes from `ImageSets/Main` of the same set, if the image is listed there; an image in several lists
is in the test split. Source: Everingham et al. 2010, the documentation of the development kit.
"""

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from upath import UPath

from components.ingest.annotation_files import SkippedItems, paired_records
from components.ingest.columns import ColumnsConfig
from components.ingest.filesystem import image_files, open_path
from components.ingest.record import Record, malformed
from vlmflow.artifacts.files import walk
from vlmflow.artifacts.text_files import read_lines
from vlmflow.errors import DataError, RecordError
from vlmflow.images.decoding import IMAGE_SUFFIXES

SPLIT_LISTS = {"train": "train", "val": "test", "test": "test"}


class VocReader:
    """Read a folder with XML files (usually in `Annotations`) and images (usually in `JPEGImages`).

    Raises:
        DataError: the folder has no XML file.
    """

    def __init__(self, path: str, index: str = ""):
        self.root = open_path(path)
        self.annotations = [file for file in walk(self.root) if file.suffix.lower() == ".xml"]
        if not self.annotations:
            raise DataError(f"ingest.path: {path!r}: no *.xml file found")
        # The masks of the segmentation task have the names of their images.
        self.images = [file for file in image_files(self.root) if not file.parent.name.startswith("Segmentation")]
        self.splits = _read_splits(self.root)

    def columns(self, wanted: ColumnsConfig) -> ColumnsConfig:
        """Return the fixed mapping of the format."""
        return ColumnsConfig(image="image", caption="", boxes="boxes", box_format="xyxy", split="split")

    def records(self) -> Iterator[Record]:
        """Stream the images in order of their names."""
        return paired_records(self.root, self.images, self.annotations, self._read)

    def _read(self, annotation: UPath, refused: SkippedItems) -> dict[str, Any]:
        values = _read_annotation(annotation, refused)
        for folder, splits in self.splits.items():
            if annotation.is_relative_to(folder) and annotation.stem in splits:
                values["split"] = splits[annotation.stem]
        return values


def _read_annotation(annotation: UPath, refused: SkippedItems) -> dict[str, Any]:
    try:
        tree = ET.fromstring(annotation.read_bytes())
    except (ET.ParseError, ValueError, LookupError) as error:
        raise malformed(f"{annotation.name}: not XML: {error}") from None
    boxes = []
    for number, element in enumerate(tree.iter("object"), 1):
        at = f"{annotation.name}, object {number}"
        try:
            boxes.append({"label": _only_text(element, "name"), "bbox": _read_box(element), "at": at})
        except RecordError as reason:
            refused.append(("regions", RecordError(reason.kind, f"{at}: {reason.detail}")))
    return {"boxes": boxes, "width": tree.findtext("size/width"), "height": tree.findtext("size/height")}


def _read_box(element: ET.Element) -> list[float]:
    if element.find("bndbox") is None:
        raise RecordError("no box", f"no bndbox among {', '.join(child.tag for child in element)}")
    corners = [_only_text(element, f"bndbox/{corner}") for corner in ("xmin", "ymin", "xmax", "ymax")]
    try:
        x0, y0, x1, y1 = map(float, corners)
    except ValueError:
        raise RecordError("invalid box", f"corners {corners}") from None
    if x0 > x1 or y0 > y1:
        raise RecordError("empty box", f"corners {corners}")
    if max(map(abs, (x0, y0, x1, y1))) <= 1:
        raise RecordError("empty box", f"corners {corners}: no number is above 1; boxes are in pixels, not fractions")
    return [x0 - 1, y0 - 1, x1, y1]


def _only_text(element: ET.Element, path: str) -> str:
    found = element.findall(path)
    if len(found) > 1:
        raise malformed(f"{len(found)} elements {path}")
    return (found[0].text or "").strip() if found else ""


def _read_splits(root: UPath) -> dict[UPath, dict[str, str]]:
    """Return the split of each listed stem, by the folder of the set that contains `ImageSets`."""
    found: dict[UPath, dict[str, str]] = {}
    for file in walk(root):
        if file.stem not in SPLIT_LISTS or file.suffix != ".txt" or file.parent.parts[-2:] != ("ImageSets", "Main"):
            continue
        splits = found.setdefault(file.parent.parent.parent, {})
        for line in read_lines(file):
            if line.strip():
                name = PurePosixPath(line.split()[0])
                stem = name.stem if name.suffix.lower() in IMAGE_SUFFIXES else name.name
                splits[stem] = max(splits.get(stem, "train"), SPLIT_LISTS[file.stem], key=("train", "test").index)
    return found
