"""The `yolo` source: images, and for each a text file with one box per line.

    set/
      data.yaml                names: [dog, cat]
      images/train/a.png
      labels/train/a.txt       0 0.5 0.5 0.5 1.0       (class x_centre y_centre width height)

Coordinates are fractions of the width and height of the image. A line with more numbers is a polygon. Class names come
from `data.yaml` (Ultralytics, Roboflow), `classes.txt` or `obj.names`. An image without a text file has no objects.
The split is that of the folder (`images/train`, `valid/images`). Source: Ultralytics documentation.
"""

from collections.abc import Iterator
from typing import Any

import yaml
from upath import UPath

from components.ingest.annotation_files import SkippedItems, paired_records
from components.ingest.columns import ColumnsConfig
from components.ingest.filesystem import image_files, open_path
from components.ingest.record import Record
from vlmflow.artifacts.text_files import read_lines, read_text, split_lines
from vlmflow.errors import DataError, RecordError

CLASS_LISTS = ("classes.txt", "obj.names")


class YoloReader:
    """Read a folder with images, their text files and the class names.

    Raises:
        DataError: the class names are missing.
    """

    def __init__(self, path: str, index: str = ""):
        self.root = open_path(path)
        self.names = _read_class_names(self.root, index)
        self.images = image_files(self.root)
        stems = {image.stem for image in self.images}
        self.labels = [
            file
            for file in sorted(self.root.rglob("*.txt"), key=str)
            # Text files in the root are lists of classes or images, or notes, unless an image has their name.
            if file.name not in CLASS_LISTS and (file.parent != self.root or file.stem in stems)
        ]

    def columns(self, wanted: ColumnsConfig) -> ColumnsConfig:
        """Return the fixed mapping of the format."""
        return ColumnsConfig(image="image", caption="", boxes="boxes", box_format="yolo", split="split")

    def records(self) -> Iterator[Record]:
        """Stream the images in order of their names."""
        return paired_records(self.root, self.images, self.labels, self._read, optional=True)

    def _read(self, label: UPath, refused: SkippedItems) -> dict[str, Any]:
        boxes = []
        for number, *numbers in (line.split() for line in split_lines(read_text(label)) if line.strip()):
            if number in self.names:
                boxes.append({"label": self.names[number], "bbox": numbers})
            else:
                refused.append(
                    (
                        "regions",
                        RecordError("no phrase", f"class {number!r:.40} is not among the {len(self.names)} classes"),
                    )
                )
        return {"boxes": boxes}


def _read_class_names(root: UPath, index: str) -> dict[str, str]:
    for file in (
        [root / index] if index else [*sorted(root.glob("*.y*ml"), key=str), *(root / name for name in CLASS_LISTS)]
    ):
        if not file.is_file():
            continue
        lines = read_lines(file)
        if file.name in CLASS_LISTS:
            return {str(i): name.strip() for i, name in enumerate(lines)}
        try:
            names = (yaml.safe_load("\n".join(lines)) or {}).get("names")
        except (yaml.YAMLError, AttributeError) as error:
            raise DataError(f"{file}: not YAML: {' '.join(str(error).split())}") from None
        if names:
            return {str(i): str(name) for i, name in (names.items() if isinstance(names, dict) else enumerate(names))}
    raise DataError(f"ingest.path: {str(root)!r}: no class names found; add data.yaml with `names`, or classes.txt")
