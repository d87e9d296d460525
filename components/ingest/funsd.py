"""The `funsd` source: scanned forms, one JSON file per image with the entities, their words and boxes.

    funsd/training_data/
      images/f.png
      annotations/f.json    {"form": [{"text": "Due by:", "box": [x0, y0, x1, y1],
                                       "words": [{"box": [x0, y0, x1, y1], "text": "Due"}, …]}]}

The words of an entity that are on the same row become one line of text. The split is that of the folder
(`training_data`, `testing_data`). Source: Jaume et al. 2019.
"""

from collections.abc import Iterator
from typing import Any

from upath import UPath

from components.ingest import boxes
from components.ingest.annotation_files import SkippedItems, paired_records
from components.ingest.columns import ColumnsConfig
from components.ingest.filesystem import image_files, open_path
from components.ingest.json_files import parse_json
from components.ingest.record import Record, malformed
from vlmflow.artifacts.files import walk
from vlmflow.artifacts.text_files import read_text
from vlmflow.errors import DataError, RecordError


class FunsdReader:
    """Read a folder with images (in `images`) and JSON files (in `annotations`).

    Raises:
        DataError: the folder has no JSON file.
    """

    def __init__(self, path: str, index: str = ""):
        self.root = open_path(path)
        self.forms = [file for file in walk(self.root) if file.suffix.lower() == ".json"]
        if not self.forms:
            raise DataError(f"ingest.path: {path!r}: no *.json file found")

    def columns(self, wanted: ColumnsConfig) -> ColumnsConfig:
        """Return the fixed mapping of the format."""
        return ColumnsConfig(image="image", caption="", lines="lines", split="split")

    def records(self) -> Iterator[Record]:
        """Stream the images in order of their names."""
        return paired_records(self.root, image_files(self.root), self.forms, _read_form)


def _read_form(form: UPath, refused: SkippedItems) -> dict[str, Any]:
    return {"lines": [line for entity in _entities(form) for line in _entity_lines(entity, refused)]}


def _entities(form: UPath) -> list[Any]:
    try:
        entities = parse_json(read_text(form))["form"]
    except (KeyError, TypeError) as error:
        raise malformed(f"{form.name}: `form` cannot be read: {type(error).__name__}: {error}") from None
    if not isinstance(entities, list):
        raise malformed(f"{form.name}: `form` is not a list: {entities!r:.80}")
    return entities


def _entity_lines(entity: Any, refused: SkippedItems) -> list[dict[str, Any]]:
    words = entity.get("words") if isinstance(entity, dict) else None
    words_with_boxes = []
    for word in words or ([entity] if isinstance(entity, dict) else []):
        try:
            text = boxes.text_field(word, boxes.TEXT_KEYS)
            x0, y0, x1, y1 = (float(number) for number in word["box"])
            if not (x0 < x1 and y0 < y1):  # joining it to a line would hide it
                raise ValueError
            words_with_boxes.append({"text": text, "x0": x0, "y0": y0, "x1": x1, "y1": y1})
        except RecordError as reason:
            refused.append(("lines", reason))
        except (KeyError, TypeError, ValueError):
            refused.append(("lines", RecordError("invalid box", f"{word!r:.80}")))
    rows = boxes.group_lines(words_with_boxes)
    texts = [(" ".join(word["text"] for word in row if word["text"]), row) for row in rows]
    return [
        {"text": text, "box": [min(w["x0"] for w in row), min(w["y0"] for w in row),
                               max(w["x1"] for w in row), max(w["y1"] for w in row)]}
        for text, row in texts if text or words is None
    ]  # fmt: skip
