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
from collections.abc import Iterator
from typing import Any

from upath import UPath

from components.ingest.coco import image_folders, stream_entries
from components.ingest.columns import ColumnsConfig
from components.ingest.filesystem import open_path
from components.ingest.json_files import parse_json
from components.ingest.record import Record
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
        found = [self.root / index] if index else sorted(self.root.glob("refs(*).*"), key=str)
        if len(found) != 1 or not found[0].is_file():
            names = ", ".join(file.name for file in found) or "none"
            raise DataError(f"ingest.path: {path!r}: expected one refs(…).p, found: {names}; set ingest.index")
        self.index, self.instances = found[0], self.root / "instances.json"
        if not self.instances.is_file():
            raise DataError(f"ingest.path: {path!r}: instances.json is missing beside {self.index.name}")

    def columns(self, wanted: ColumnsConfig) -> ColumnsConfig:
        """Return the fixed mapping of the format."""
        return ColumnsConfig(image="image", caption="", boxes="boxes", box_format="xywh", split="split")

    def records(self) -> Iterator[Record]:
        """Stream the images in the order of the refs.

        Raises:
            DataError: one of the files is damaged.
        """
        refs = _load_refs(self.index)
        named = {ref["ann_id"] for ref in refs}
        annotations = stream_entries(self.instances, "annotations", "id")
        boxes = {entry["id"]: entry.get("bbox") for entry in annotations if entry["id"] in named}
        categories = {
            entry["id"]: entry["name"] for entry in stream_entries(self.instances, "categories", "id", "name")
        }
        images = {
            entry["id"]: entry["file_name"] for entry in stream_entries(self.instances, "images", "id", "file_name")
        }
        by_image: dict[Any, list[dict[str, Any]]] = {}
        for ref in refs:
            by_image.setdefault(ref["image_id"], []).append(ref)
        folders, name = image_folders(self.root, self.index), self.root.absolute().name
        for image, group in by_image.items():
            lost = [ref for ref in group if ref["ann_id"] not in boxes]
            yield Record(
                location=f"{self.index.name}:{image}",
                source=name,
                values={
                    "image": images.get(image),
                    "split": next((ref["split"] for ref in group if ref["split"] != "train"), "train"),
                    "boxes": [
                        {"phrase": sentence["sent"], "category": categories.get(ref.get("category_id"), ""),
                         "bbox": boxes[ref["ann_id"]]}
                        for ref in group if ref["ann_id"] in boxes for sentence in ref["sentences"]
                    ],
                },
                folders=folders,
                skipped=[("regions", RecordError("no box", f"no annotation {ref['ann_id']}")) for ref in lost],
            )  # fmt: skip


class _SafeUnpickler(pickle.Unpickler):
    """Unpickler for lists, dicts, strings and numbers; refuses everything else, because it could run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"refused to load {module}.{name}: only plain data is allowed")


def _load_refs(index: UPath) -> list[dict[str, Any]]:
    content = index.read_bytes()
    try:
        if index.suffix == ".json":
            refs = parse_json(decode_text(content))
        else:  # written by Python 2, whose strings are bytes
            refs = _SafeUnpickler(io.BytesIO(content), encoding="utf-8", errors="replace").load()
        for ref in refs:
            _ = ref["ann_id"], ref["image_id"], ref["split"], [sentence["sent"] for sentence in ref["sentences"]]
    except Exception as error:  # a damaged pickle can raise almost any type
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{index}: cannot be read as refs: {reason}; get the file again") from None
    return refs
