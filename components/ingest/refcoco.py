"""The `refcoco` source: RefCOCO, RefCOCO+ and RefCOCOg in the layout of the `refer` toolkit.

    refcoco/
      refs(unc).p       [{"ref_id": 0, "ann_id": 5, "image_id": 1, "category_id": 18, "split": "train",
                          "sentences": [{"sent": "left dog", …}]}]
      instances.json    a COCO document with the boxes

The refs map referring expressions to annotations of `instances.json`. Each image becomes one record with a region for
each expression. An image is in the test split if any of its expressions is. Images are searched beside the refs
(`train2014`, `images`) and in `../images/mscoco/images/train2014`.

Source: Yu et al. 2016; github.com/lichengunc/refer.
"""

import io
import pickle
from collections import Counter
from collections.abc import Iterator
from typing import Any

from upath import UPath

from components.ingest.coco import image_folders, read_categories, stream_entries
from components.ingest.columns import ColumnsConfig
from components.ingest.filesystem import open_path
from components.ingest.json_files import parse_json
from components.ingest.record import Record
from vlmflow.artifacts.files import describe_missing, walk
from vlmflow.artifacts.text_files import decode_text
from vlmflow.errors import DataError, RecordError


class RefCocoReader:
    """Read a folder with a refs file and `instances.json`.

    Args:
        path: the folder.
        index: the refs file in the folder, `.p` or `.json`; "" uses the only `refs(…)` file.

    Raises:
        DataError: one of the two files is missing.
    """

    def __init__(self, path: str, index: str = ""):
        self.root = open_path(path)
        found = [self.root / index] if index else [f for f in walk(self.root, depth=1) if f.name.startswith("refs(")]
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise DataError(f"ingest.path: {path!r}: expected one refs(…).p, found: {names}; set ingest.index")
        self.index, self.instances = found[0], self.root / "instances.json"
        for file in (self.index, self.instances):
            if not file.is_file():
                raise DataError(f"ingest.path: no such file: {describe_missing(file.name, [self.root])}")

    def columns(self, wanted: ColumnsConfig) -> ColumnsConfig:
        """Return the fixed mapping of the format."""
        return ColumnsConfig(image="image", caption="", boxes="boxes", box_format="xywh", split="split")

    def records(self) -> Iterator[Record]:
        """Stream the images in the order of the refs.

        Raises:
            DataError: one of the files is damaged.
        """
        refs = _load_refs(self.index)
        instances = _Instances(self.instances, {ref["ann_id"] for ref in refs})
        by_image: dict[Any, list[dict[str, Any]]] = {}
        for ref in refs:
            by_image.setdefault(ref["image_id"], []).append(ref)
        folders, name = image_folders(self.root, self.index), self.root.absolute().name
        for image, group in by_image.items():
            faults = [instances.fault_of(ref) for ref in group]
            entry = instances.images.get(image, {})
            yield Record(
                location=f"{self.index.name}:{image}",
                source=name,
                values={
                    "image": entry.get("file_name"),
                    "width": entry.get("width"),
                    "height": entry.get("height"),
                    "split": next((ref["split"] for ref in group if ref["split"] != "train"), "train"),
                    "boxes": [
                        {"phrase": sentence["sent"], "category": instances.categories.get(ref.get("category_id"), ""),
                         "bbox": instances.annotations[ref["ann_id"]].get("bbox"), "at": f"annotation {ref['ann_id']}"}
                        for ref, fault in zip(group, faults, strict=True) if not fault for sentence in ref["sentences"]
                    ],
                },
                folders=folders,
                error=instances.fault_of_image(image),
                skipped=[("regions", fault) for fault in faults if fault],
            )  # fmt: skip


class _Instances:
    """The images, categories and annotations `named` by the refs, by id.

    Raises:
        DataError: the file is not a COCO document.
    """

    def __init__(self, file: UPath, named: set[Any]):
        self.categories = read_categories(file)
        self.images, self.annotations = dict[Any, dict[str, Any]](), dict[Any, dict[str, Any]]()
        self._faults: dict[tuple[str, Any], RecordError] = {}
        self._counts: Counter[tuple[str, Any]] = Counter()
        for what, keys, entries in (("images", ("id", "file_name"), self.images),
                                    ("annotations", ("id", "image_id"), self.annotations)):  # fmt: skip
            for entry, fault in stream_entries(file, what, *keys):
                number = entry["id"]
                if what == "images" or number in named:
                    kept = ("file_name", "width", "height", "image_id", "bbox")
                    entries[number] = {key: entry[key] for key in kept if key in entry}
                    self._counts[what, number] += 1
                    if fault:
                        self._faults[what, number] = fault

    def fault_of_image(self, image: Any) -> RecordError | None:
        """Return why the image of a record cannot be used, or None."""
        if image not in self.images:
            return RecordError("no image", f"image {image!r} is not in instances.json")
        return self._fault("images", image)

    def fault_of(self, ref: dict[str, Any]) -> RecordError | None:
        """Return why the annotation of a ref cannot be used, or None."""
        number = ref["ann_id"]
        if number not in self.annotations:
            return RecordError("no box", f"no annotation {number}")
        if fault := self._fault("annotations", number):
            return fault
        if (other := self.annotations[number]["image_id"]) != ref["image_id"]:
            return RecordError("no box", f"annotation {number} is on image {other}, not on {ref['image_id']}")
        return None

    def _fault(self, what: str, number: Any) -> RecordError | None:
        if self._counts[what, number] > 1:
            return RecordError("ambiguous id", f"several entries of `{what}` have the id {number}")
        return self._faults.get((what, number))


class _SafeUnpickler(pickle.Unpickler):
    """Unpickler for lists, dicts, strings and numbers; refuses everything else, because it could run code."""

    def find_class(self, module: str, name: str) -> Any:
        remedy = "convert NumPy numbers with int()" if module.startswith("numpy") else "get the file from its source"
        raise pickle.UnpicklingError(f"the file calls {module}.{name}, only plain data is allowed; {remedy}")


def _load_refs(index: UPath) -> list[dict[str, Any]]:
    try:
        content = index.read_bytes()
        if index.suffix == ".json":
            refs = parse_json(decode_text(content))
        else:  # written by Python 2, whose strings are bytes
            refs = _SafeUnpickler(io.BytesIO(content), encoding="utf-8", errors="replace").load()
        for ref in refs:
            _ = ref["ann_id"], ref["image_id"], ref["split"], [sentence["sent"] for sentence in ref["sentences"]]
    except Exception as error:  # a damaged pickle can raise almost any type
        raise DataError(f"{index}: cannot be read as refs: {type(error).__name__}: {error}") from None
    return refs
