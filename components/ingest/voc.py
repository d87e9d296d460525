"""The `voc` source: Pascal VOC, one XML file per image.

    VOC2012/
      JPEGImages/2007_0.jpg
      Annotations/2007_0.xml       <object><name>dog</name><bndbox><xmin>1</xmin>…</bndbox></object>
      ImageSets/Main/train.txt     image names, one per line

Corners are 1-based and inclusive: `xmin` 1 is the left edge, and `xmax` 100 is the right edge of an image of 100
pixels. The split comes from `ImageSets/Main`, if the image is listed there. Source: Everingham et al. 2010, the
documentation of the development kit.
"""

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import Any

from upath import UPath

from components.ingest.annotation_files import SkippedItems, paired_records
from components.ingest.columns import ColumnsConfig
from components.ingest.filesystem import image_files, open_path
from components.ingest.record import Record, malformed
from vlmflow.artifacts.text_files import read_lines
from vlmflow.errors import DataError, RecordError

SPLIT_LISTS = {"train": "train", "val": "test", "test": "test"}


class VocReader:
    """Read a folder with XML files (usually in `Annotations`) and images (usually in `JPEGImages`).

    Raises:
        DataError: the folder has no XML file.
    """

    def __init__(self, path: str, index: str = ""):
        self.root = open_path(path)
        self.annotations = sorted(self.root.rglob("*.xml"), key=str)
        if not self.annotations:
            raise DataError(f"ingest.path: {path!r}: no *.xml file found")
        # The masks of the segmentation task have the names of their images.
        self.images = [file for file in image_files(self.root) if not file.parent.name.startswith("Segmentation")]
        self.splits = _read_splits(self.root)

    def columns(self, wanted: ColumnsConfig) -> ColumnsConfig:
        """Return the fixed mapping of the format."""
        return ColumnsConfig(image="image", caption="", boxes="boxes", split="split")

    def records(self) -> Iterator[Record]:
        """Stream the images in order of their names."""
        return paired_records(self.root, self.images, self.annotations, self._read)

    def _read(self, annotation: UPath, refused: SkippedItems) -> dict[str, Any]:
        split = self.splits.get(annotation.stem)
        return {"boxes": _read_boxes(annotation, refused), **({"split": split} if split else {})}


def _read_boxes(annotation: UPath, refused: SkippedItems) -> list[dict[str, Any]]:
    try:
        tree = ET.fromstring(annotation.read_bytes())
    except (ET.ParseError, ValueError, LookupError) as error:
        raise malformed(f"{annotation.name}: not XML: {error}") from None
    boxes = []
    for element in tree.iter("object"):
        corners = [element.findtext(f"bndbox/{corner}") for corner in ("xmin", "ymin", "xmax", "ymax")]
        try:
            x0, y0, x1, y1 = (float(corner or "none") for corner in corners)
        except ValueError:
            refused.append(("regions", RecordError("invalid box", f"corners {corners}")))
            continue
        boxes.append({"label": element.findtext("name") or "", "bbox": [x0 - 1, y0 - 1, x1, y1]})
    return boxes


def _read_splits(root: UPath) -> dict[str, str]:
    found: dict[str, str] = {}
    for file in root.rglob("ImageSets/Main/*.txt"):
        if file.stem in SPLIT_LISTS:
            found |= {line.split()[0]: SPLIT_LISTS[file.stem] for line in read_lines(file) if line.strip()}
    return found
