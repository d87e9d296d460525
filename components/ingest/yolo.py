"""The `yolo` source: images, and for each a text file with one box per line.

    set/
      data.yaml                names: [dog, cat]
      images/train/a.png
      labels/train/a.txt       0 0.5 0.5 0.5 1.0       (class x_centre y_centre width height)

Coordinates are fractions of the width and height of the image. A line with more numbers is a polygon; or a box and its
keypoints, if `data.yaml` states `kpt_shape`. Class names come from `data.yaml` (Ultralytics, Roboflow), `classes.txt`
or `obj.names`. An image without a text file has no objects. The split is that of the folder (`images/train`,
`valid/images`). Source: Ultralytics documentation.
"""

import math
from collections.abc import Iterator
from typing import Any

import yaml
from upath import UPath

from components.ingest.annotation_files import SkippedItems, paired_records
from components.ingest.columns import ColumnsConfig
from components.ingest.filesystem import image_files, open_path, relative_name
from components.ingest.record import Record
from vlmflow.artifacts.files import describe_missing, walk
from vlmflow.artifacts.text_files import read_lines, stream_lines
from vlmflow.config.strict_yaml import parse_yaml
from vlmflow.errors import DataError, RecordError

CLASS_LISTS = ("classes.txt", "obj.names")
BOX_NUMBERS = 4


class YoloReader:
    """Read a folder with images, their text files and the class names.

    Args:
        path: the folder.
        index: the file with the class names; "" uses the only one.

    Raises:
        DataError: the class names are missing, or stated twice.
    """

    def __init__(self, path: str, index: str = ""):
        self.root = open_path(path)
        self.names, self.keypoint_numbers = _read_classes(self.root, index)
        self.class_names = set(self.names.values())
        self.images = image_files(self.root)
        stems = {image.stem for image in self.images}
        self.labels = [
            file
            for file in walk(self.root)
            # Text files in the root are lists of classes or images, or notes, unless an image has their name.
            if file.suffix.lower() == ".txt"
            and file.name not in CLASS_LISTS
            and (file.parent != self.root or file.stem in stems)
        ]

    def columns(self, wanted: ColumnsConfig) -> ColumnsConfig:
        """Return the fixed mapping of the format."""
        return ColumnsConfig(image="image", caption="", boxes="boxes", box_format="yolo", split="split")

    def records(self) -> Iterator[Record]:
        """Stream the images in order of their names."""
        return paired_records(self.root, self.images, self.labels, self._read, optional=True)

    def _read(self, label: UPath, refused: SkippedItems) -> dict[str, Any]:
        boxes = []
        for number, line, fault in stream_lines(label):
            try:
                if fault:
                    raise fault
                if line.strip():
                    boxes.append({**self._parse_line(line.split()), "at": f"{label.name}:{number}"})
            except RecordError as reason:
                refused.append(("regions", RecordError(reason.kind, f"{label.name}:{number}: {reason.detail}")))
        return {"boxes": boxes}

    def _parse_line(self, parts: list[str]) -> dict[str, Any]:
        name = self.names.get(_class_number(parts[0]))
        if name is None:
            raise RecordError("no phrase", f"class {parts[0]!r:.40} is not among the {len(self.names)} classes")
        numbers = parts[1:]
        if self.keypoint_numbers:
            if len(numbers) != BOX_NUMBERS + self.keypoint_numbers:
                expected = f"{BOX_NUMBERS} of the box and {self.keypoint_numbers} of the keypoints (kpt_shape)"
                raise RecordError("invalid box", f"{len(numbers)} numbers, expected {expected}")
            numbers = numbers[:BOX_NUMBERS]
        return {"label": name, "bbox": numbers}


def _class_number(text: str) -> str:
    """Return the number without the decimals that NumPy writes: `1.0` becomes `1`."""
    whole, _, decimals = text.partition(".")
    return text if decimals.strip("0") else whole


def _read_classes(root: UPath, index: str) -> tuple[dict[str, str], int]:
    """Return the names of the classes by number, and the number of values for keypoints in a line."""
    if index and not (root / index).is_file():
        raise DataError(f"ingest.index: no such file: {describe_missing(index, [root])}")
    files = [root / index] if index else walk(root, depth=1)
    tables = {file: _read_table(file) for file in files if file.suffix.lower() in (".yaml", ".yml")}
    found = {file: (_names_of(file, table), _keypoint_numbers(file, table)) for file, table in tables.items()
             if table.get("names")}  # fmt: skip
    if not found:
        lists = [file for file in (files if index else walk(root)) if index or file.name in CLASS_LISTS]
        found = {file: (_names_of(file, {"names": read_lines(file)}), 0) for file in lists if file not in tables}
    if not found:
        raise DataError(f"ingest.path: {str(root)!r}: no class names found; add data.yaml with `names`, or classes.txt")
    first, *others = found.values()
    if any(other != first for other in others):
        names = ", ".join(relative_name(file, root) for file in found)
        raise DataError(f"ingest.path: {str(root)!r}: different class names in {names}; set ingest.index to one")
    return first


def _read_table(file: UPath) -> dict[str, Any]:
    try:
        table = parse_yaml("\n".join(read_lines(file)))
    except yaml.YAMLError as error:
        raise DataError(f"{file}: not YAML: {' '.join(str(error).split())}") from None
    return table if isinstance(table, dict) else {}


def _names_of(file: UPath, table: dict[str, Any]) -> dict[str, str]:
    names, count = table["names"], table.get("nc")
    if not isinstance(names, list | dict):
        raise DataError(f"{file}: names is {names!r:.80}; write a list, such as [dog, cat], or a mapping from numbers")
    named = {str(i): name for i, name in (names.items() if isinstance(names, dict) else enumerate(names))}
    for i, name in named.items():
        if not isinstance(name, str | int | float) or isinstance(name, bool):
            raise DataError(f"{file}: the name of class {i} is {name!r:.40}; write it in quotes")  # YAML's no and null
    if isinstance(count, int) and count != len(named):
        raise DataError(f"{file}: nc is {count}, but names has {len(named)} entries; correct one of them")
    return {i: str(name).strip() for i, name in named.items()}


def _keypoint_numbers(file: UPath, table: dict[str, Any]) -> int:
    shape = table.get("kpt_shape")
    if shape is None:
        return 0
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and n > 0 for n in shape)):
        raise DataError(
            f"{file}: kpt_shape is {shape!r:.40}; write the number of keypoints and their values, as [17, 3]"
        )
    return math.prod(shape)
