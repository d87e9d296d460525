"""Records of a source, converted to image-text pairs."""

from typing import Any

from components.ingest import boxes
from components.ingest.captions import parse_captions
from components.ingest.columns import ColumnsConfig, text
from components.ingest.image_access import ImageAccess
from components.ingest.quarantine import Quarantine
from components.ingest.record import Record
from components.ingest.sandboxed_decoder import DecodedImage
from components.ingest.split import resolve_split
from vlmflow.artifacts import dataset
from vlmflow.errors import RecordError

SHOWN_NAMES = 1000  # labels that are kept for the message about an unknown one


class PairBuilder:
    """Build rows of the schema `pairs`; unusable records, regions and lines go to the quarantine.

    Args:
        columns: the checked mapping of columns.
        quarantine: receives the skipped rows, regions and lines.
        access: reads the images that rows name.
        licence: licence of rows without their own.
        holdout: fraction of images hashed into the test split, if no column gives it.
        seed: seed of the hash.
        names: other words for labels of the source.
    """

    def __init__(
        self,
        columns: ColumnsConfig,
        quarantine: Quarantine,
        access: ImageAccess,
        *,
        licence: str,
        holdout: float,
        seed: int,
        names: dict[str, str] | None = None,
    ):
        self.columns, self.quarantine, self.access, self.names = columns, quarantine, access, names or {}
        self.unmet_names = set(self.names)
        self.met_names: set[str] = set()  # some of the other labels, for messages
        self.licence, self.holdout, self.seed = licence, holdout, seed
        self.records = 0
        self.clipped = 0  # number of clipped boxes

    def read_images(self, record: Record) -> list[bytes]:
        """Return the encoded image of the record, as a list of one.

        Raises:
            RecordError: there is no image, or the record is malformed.
        """
        if record.error:
            raise record.error
        return [self.access.read(record.values.get(self.columns.image), record.folders)]

    def rows(self, record: Record, decoded: list[DecodedImage] | RecordError) -> list[dict[str, Any]]:
        """Return a pair for each caption of `record`, or [] if the record goes to the quarantine."""
        self.records += 1
        name = _name(record.values.get(self.columns.image))
        try:
            if isinstance(decoded, RecordError):
                raise decoded
            image = decoded[0]
            captions = self._captions(record)
            row = {
                "image": image.encoded,
                "width": image.size[0],
                "height": image.size[1],
                "source": f"{record.source}/{name or record.location}",
                "licence": text(self._value(record, "licence")) or self.licence,
                "split": resolve_split(self._value(record, "split"), image.encoded, self.seed, self.holdout),
                "label": ""
                if isinstance(self._value(record, "label"), list)
                else self._renamed(text(self._value(record, "label"))),
            }
        except RecordError as reason:
            self.quarantine.add("rows", record.location, name, reason)
            return []
        skipped = list(record.skipped)
        row["regions"] = self._regions(record, image, [row["label"], *captions], skipped)
        row["lines"] = self._lines(record, image, skipped)
        if not self.columns.caption:
            captions = [_caption_from(row["regions"], row["lines"])]
        pairs = [{"uid": dataset.uid(image.encoded, caption), "caption": caption, **row} for caption in captions]
        for what, reason in skipped:
            self.quarantine.add(what, record.location, name, reason, [pair["uid"] for pair in pairs])
        return pairs

    def _value(self, record: Record, key: str) -> Any:
        column = getattr(self.columns, key)
        return record.values.get(column) if column else None

    def _captions(self, record: Record) -> list[str]:
        columns = self.columns
        needed = columns.caption and not (columns.boxes or columns.lines or columns.label)
        if needed and columns.caption not in record.values:
            raise RecordError("no caption", f"no {columns.caption!r} among {', '.join(record.values)}")
        return parse_captions(self._value(record, "caption"))

    def _regions(
        self, record: Record, image: DecodedImage, fallbacks: list[str], skipped: list[tuple[str, RecordError]]
    ) -> list[dict[str, Any]]:
        """Parse the boxes of the record; a box without a phrase uses the label, or else the caption."""
        items = _items(self._value(record, "boxes"), "regions", skipped)
        names = self._value(record, "label")
        regions = []
        for i, item in enumerate(items):
            try:
                phrase = self._class_name(boxes.field(item, boxes.PHRASE_KEYS))
                if not phrase and isinstance(names, list):
                    if len(names) != len(items):
                        raise RecordError("no phrase", f"{len(items)} boxes, but {len(names)} labels")
                    phrase = self._class_name(names[i])
                phrase = phrase or next((words.strip() for words in fallbacks if words.strip()), "")
                if not phrase:
                    raise RecordError("no phrase", "box, label and caption have no text")
                category = self._class_name(boxes.field(item, boxes.CATEGORY_KEYS))
                regions.append({"phrase": phrase, "category": category, **self._parse_box(item, image, record)})
            except RecordError as reason:
                skipped.append(("regions", _located(item, reason)))
        return regions

    def _lines(
        self, record: Record, image: DecodedImage, skipped: list[tuple[str, RecordError]]
    ) -> list[dict[str, Any]]:
        lines = []
        for item in _items(self._value(record, "lines"), "lines", skipped):
            try:
                words = boxes.text_field(item, boxes.TEXT_KEYS)
                if not words:
                    raise RecordError("no text", "the line has a box but no text")
                lines.append({"text": words, **self._parse_box(item, image, record)})
            except RecordError as reason:
                skipped.append(("lines", _located(item, reason)))
        return lines

    def _class_name(self, value: Any) -> str:
        """Return the name of a class; a number is a place in a list of names that the source does not have."""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        name = text(value).strip()
        if isinstance(value, int | float) and not isinstance(value, bool) and name and name not in self.names:
            raise RecordError("no phrase", f"class {name} has no name; set ingest.names: {{'{name}': …}}")
        return self._renamed(name)

    def _renamed(self, name: str) -> str:
        self.unmet_names.discard(name)
        if self.unmet_names and len(self.met_names) < SHOWN_NAMES:
            self.met_names.add(name)
        return self.names.get(name, name)

    def _parse_box(self, item: Any, image: DecodedImage, record: Record) -> dict[str, float]:
        stated = boxes.stated_size(self._value(record, "width"), self._value(record, "height"))
        box, clipped = boxes.parse_box(item, *image.original_size, self.columns.box_format, stated)
        self.clipped += clipped
        x_scale, y_scale = (
            image.size[0] / image.original_size[0],
            image.size[1] / image.original_size[1],
        )  # 1 unless the image was shrunk
        return {corner: value * (x_scale if corner[0] == "x" else y_scale) for corner, value in box.items()}


def _items(value: Any, what: str, skipped: list[tuple[str, RecordError]]) -> list[Any]:
    try:
        return boxes.parse_boxes(value)
    except RecordError as reason:
        skipped.append((what, reason))
        return []


def _located(item: Any, reason: RecordError) -> RecordError:
    """Return the error with the line of the annotation file, which readers give as `at`."""
    if not isinstance(item, dict) or "at" not in item:
        return reason
    return RecordError(reason.kind, f"{item['at']}: {reason.detail}")


def _name(image: Any) -> str:
    """Return the file name of the image as the source gives it, or "" if it has only bytes."""
    if isinstance(image, list) and len(image) == 1:
        image = image[0]
    if isinstance(image, dict):
        image = image.get("path")
    if not isinstance(image, str) or image.startswith("data:"):
        return ""
    return image.encode("utf-8", "replace").decode()


def _caption_from(regions: list[dict[str, Any]], lines: list[dict[str, Any]]) -> str:
    """Join the distinct phrases of the regions in reading order, or else the texts of the lines."""
    phrases = dict.fromkeys(region["phrase"] for region in boxes.reading_order(regions))
    return ", ".join(phrases) or " ".join(line["text"] for line in lines)
