"""The `yolo` source: pictures, and for each a text file with a line `class x y width height` for each box.

Numbers are shares of the picture's sides; a line with more of them is a polygon. Classes are named by
`data.yaml` (Ultralytics, Roboflow), or `classes.txt`, `obj.names`. A picture without a text file shows none of the
classes. The split is that of the folder (`images/train`, `valid/images`). Source: Ultralytics' documentation.
"""

from collections.abc import Iterator
from typing import Any

import yaml
from upath import UPath

from components.ingest.annotation_files import SkippedItems, paired_records
from components.ingest.columns import ColumnsConfig
from components.ingest.filesystem import image_files, open_path
from components.ingest.record import Record, malformed
from vlmflow.errors import DataError, RecordError

CLASS_LISTS = ("classes.txt", "obj.names")


class YoloReader:
    """A folder with pictures, their text files and the names of the classes.

    Raises:
        DataError: the names are not there.
    """

    def __init__(self, path: str, index: str = ""):
        self.root = open_path(path)
        self.names = _read_class_names(self.root, index)
        self.pictures = image_files(self.root)
        stems = {picture.stem for picture in self.pictures}
        self.labels = [
            file
            for file in sorted(self.root.rglob("*.txt"), key=str)
            # At the root stand lists of classes and of pictures, and notes.
            if file.name not in CLASS_LISTS and (file.parent != self.root or file.stem in stems)
        ]

    def columns(self, wanted: ColumnsConfig) -> ColumnsConfig:
        """Return the format's own mapping."""
        return ColumnsConfig(image="image", caption="", boxes="boxes", box_format="yolo", split="split")

    def records(self) -> Iterator[Record]:
        """Stream the pictures in order of their names."""
        return paired_records(self.root, self.pictures, self.labels, self._read, optional=True)

    def _read(self, label: UPath, refused: SkippedItems) -> dict[str, Any]:
        try:
            lines = label.read_text("utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise malformed(f"{label.name}: not text (byte {error.start})") from None
        boxes = []
        for number, *numbers in (line.split() for line in lines if line.strip()):
            if number in self.names:
                boxes.append({"label": self.names[number], "bbox": numbers})
            else:
                refused.append(("regions", RecordError("no phrase", f"no class {number!r:.40} of {len(self.names)}")))
        return {"boxes": boxes}


def _read_class_names(root: UPath, index: str) -> dict[str, str]:
    for file in (
        [root / index] if index else [*sorted(root.glob("*.y*ml"), key=str), *(root / name for name in CLASS_LISTS)]
    ):
        if not file.is_file():
            continue
        text = file.read_text("utf-8")
        if file.name in CLASS_LISTS:
            return {str(i): name.strip() for i, name in enumerate(text.splitlines())}
        try:
            names = (yaml.safe_load(text) or {}).get("names")
        except (yaml.YAMLError, AttributeError) as error:
            raise DataError(f"{file}: not YAML: {' '.join(str(error).split())}") from None
        if names:
            return {str(i): str(name) for i, name in (names.items() if isinstance(names, dict) else enumerate(names))}
    raise DataError(f"ingest.path: {str(root)!r}: no names of the classes: data.yaml with `names`, or classes.txt")
