"""From a record of a source to the pairs it makes."""

from typing import Any

from components.ingest import boxes
from components.ingest.columns import ColumnsConfig, text
from components.ingest.quarantine import Quarantine
from components.ingest.record import Record
from components.ingest.sandboxed_decoder import DecodedImage
from components.ingest.split import resolve_split
from vlmflow.artifacts import dataset
from vlmflow.errors import RecordError
from vlmflow.images import image_bytes


class PairBuilder:
    """Makes rows of the schema `pairs`; what cannot be used goes to the quarantine.

    Args:
        columns: the mapping, with columns that are there.
        quarantine: takes the rows, regions and lines that are left out.
        licence: of the rows whose own is not given.
        holdout: share of the pictures that is drawn into the test split, where no column says it.
        seed: of that draw.
    """

    def __init__(self, columns: ColumnsConfig, quarantine: Quarantine, *, licence: str, holdout: float, seed: int):
        self.columns, self.quarantine = columns, quarantine
        self.licence, self.holdout, self.seed = licence, holdout, seed
        self.records = 0
        self.clipped = 0  # boxes whose overhang was cut off

    def read_images(self, record: Record) -> list[bytes]:
        """Return the record's picture.

        Raises:
            RecordError: there is none, or the record is damaged.
        """
        if record.error:
            raise record.error
        return [image_bytes.read(record.values.get(self.columns.image), record.folders)]

    def rows(self, record: Record, looked: list[DecodedImage] | RecordError) -> list[dict[str, Any]]:
        """Return a pair for each caption of `record`; none if the record goes to the quarantine.

        Raises:
            DataError: the record's split is neither train nor test.
        """
        self.records += 1
        name = _name(record.values.get(self.columns.image))
        try:
            if isinstance(looked, RecordError):
                raise looked
            seen = looked[0]
            captions = self._captions(record)
            row = {
                "image": seen.encoded,
                "width": seen.size[0],
                "height": seen.size[1],
                "source": f"{record.source}/{name or record.location}",
                "licence": text(self._value(record, "licence")) or self.licence,
                "split": resolve_split(
                    self._value(record, "split"), seen.encoded, record.location, self.seed, self.holdout
                ),
                "label": "" if isinstance(self._value(record, "label"), list) else text(self._value(record, "label")),
            }
        except RecordError as reason:
            self.quarantine.add("rows", record.location, name, reason)
            return []
        refused = list(record.skipped)
        row["regions"] = self._regions(record, seen, [row["label"], *captions], refused)
        row["lines"] = self._lines(record, seen, refused)
        if not self.columns.caption:
            captions = [_caption_from(row["regions"], row["lines"])]
        pairs = [{"uid": dataset.uid(seen.encoded, caption), "caption": caption, **row} for caption in captions]
        for what, reason in refused:
            self.quarantine.add(what, record.location, name, reason, [pair["uid"] for pair in pairs])
        return pairs

    def _value(self, record: Record, key: str) -> Any:
        column = getattr(self.columns, key)
        return record.values.get(column) if column else None

    def _captions(self, record: Record) -> list[str]:
        value = self._value(record, "caption")
        return [text(entry) for entry in value or [None]] if isinstance(value, list) else [text(value)]

    def _regions(
        self, record: Record, seen: DecodedImage, described: list[str], refused: list[tuple[str, RecordError]]
    ) -> list[dict[str, Any]]:
        """Read the record's boxes; one without words of its own takes them from the label, else the caption."""
        items = _items(self._value(record, "boxes"), "regions", refused)
        names = self._value(record, "label")
        regions = []
        for i, item in enumerate(items):
            try:
                phrase = boxes.text_field(item, boxes.PHRASE_KEYS)
                if not phrase and isinstance(names, list) and len(names) == len(items):
                    phrase = text(names[i]).strip()
                phrase = phrase or next((words.strip() for words in described if words.strip()), "")
                if not phrase:
                    raise RecordError("no phrase", "the box, the label and the caption are silent")
                place = self._place(item, seen)
                regions.append({"phrase": phrase, "category": boxes.text_field(item, boxes.CATEGORY_KEYS), **place})
            except RecordError as reason:
                refused.append(("regions", reason))
        return regions

    def _lines(
        self, record: Record, seen: DecodedImage, refused: list[tuple[str, RecordError]]
    ) -> list[dict[str, Any]]:
        lines = []
        for item in _items(self._value(record, "lines"), "lines", refused):
            try:
                words = boxes.text_field(item, boxes.TEXT_KEYS)
                if not words:
                    raise RecordError("no text", "the line has a box and no words")
                lines.append({"text": words, **self._place(item, seen)})
            except RecordError as reason:
                refused.append(("lines", reason))
        return lines

    def _place(self, item: Any, seen: DecodedImage) -> dict[str, float]:
        place, clipped = boxes.parse_box(item, *seen.original_size, self.columns.box_format)
        self.clipped += clipped
        across, down = (
            seen.size[0] / seen.original_size[0],
            seen.size[1] / seen.original_size[1],
        )  # 1 unless it was made smaller
        return {corner: value * (across if corner[0] == "x" else down) for corner, value in place.items()}


def _items(value: Any, what: str, refused: list[tuple[str, RecordError]]) -> list[Any]:
    try:
        return boxes.parse_boxes(value)
    except RecordError as reason:
        refused.append((what, reason))
        return []


def _name(image: Any) -> str:
    """The picture's name as the source gives it, or "" where it is bytes alone."""
    if isinstance(image, list) and len(image) == 1:
        image = image[0]
    if isinstance(image, dict):
        image = image.get("path")
    if not isinstance(image, str) or image.startswith("data:"):
        return ""
    return image.encode("utf-8", "replace").decode()


def _caption_from(regions: list[dict[str, Any]], lines: list[dict[str, Any]]) -> str:
    """The regions' phrases, each once, in order of reading; where there are none, the lines' texts."""
    phrases = dict.fromkeys(region["phrase"] for region in boxes.reading_order(regions))
    return ", ".join(phrases) or " ".join(line["text"] for line in lines)
