"""Ingest: convert any source of images and texts to a dataset, and record everything that is skipped."""

import itertools
import logging
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from components.ingest.columns import ColumnsConfig
from components.ingest.config import IngestConfig
from components.ingest.conversation_formats import parse_conversation
from components.ingest.conversation_rows import ConversationBuilder
from components.ingest.image_access import ImageAccess
from components.ingest.pair_builder import PairBuilder
from components.ingest.preference_formats import parse_preference
from components.ingest.quarantine import Quarantine
from components.ingest.record import NOT_DOWNLOADED
from components.ingest.revision import source_revision
from components.ingest.sandboxed_decoder import DecoderPool, SizeLimits
from components.ingest.split import SPLITS, UNKNOWN_SPLIT
from components.ingest.synthetic_scenes import generate
from vlmflow.artifacts import dataset, exclusion_list
from vlmflow.artifacts.addresses import is_remote
from vlmflow.artifacts.dataset import Dataset
from vlmflow.config.nearest import nearest
from vlmflow.errors import DataError, RecordError

logger = logging.getLogger(__name__)

TAKEN_DOWN = "taken down"  # kind of error
NO_LOSS = (TAKEN_DOWN, NOT_DOWNLOADED)  # kinds of error of rows that should not or cannot be here
FEW_ROWS = 100  # smaller sources may lose as many rows as one of this size

PARSERS = {
    "conversations": parse_conversation,
    "preferences": parse_preference,
}  # by source; each gives rows of the schema of its name


def ingest(section: IngestConfig, out: Path) -> Dataset:
    """Write the rows of the source as a dataset at `out`, with `quarantine.jsonl` for everything skipped.

    The notes of the card count the rows read, the skipped items by kind of error, the clipped boxes, and the rows of
    each split.

    Raises:
        DataError: the source or a mapped column does not exist, or too few rows are usable.
    """
    out.mkdir(parents=True, exist_ok=True)
    notes: dict[str, Any] = {"source": section.source}  # filled while the rows are written; the card is written last
    if section.source == "scenes":
        rows = itertools.islice(generate(section.scenes, section.seed), section.limit)
    else:
        rows = _read_rows(section, out, notes)
    schema = section.source if section.source in PARSERS else "pairs"
    facts: dict[str, Any] = {"recipe": section.model_dump(), "notes": notes, "revision": source_revision(section.path)}
    written = dataset.write(out, schema, _count_splits(rows, notes), step="ingest", **facts)
    logger.info("%d %s from %s: %s", len(written), schema, section.path or section.source, notes)
    return written


def _read_rows(section: IngestConfig, out: Path, notes: dict[str, Any]) -> Iterator[dict[str, Any]]:
    from components.ingest.sources import open_reader  # imports every reader

    source = open_reader(section.source, section.path, section.index)
    columns = source.columns(section.columns)
    limits = SizeLimits(max_side=section.max_side, max_bytes=section.max_bytes)
    with Quarantine(out) as quarantine, DecoderPool(limits) as decoders:
        access = _image_access(section)
        builder = _make_builder(section, columns, quarantine, access, notes)
        if declared := getattr(source, "class_names", None):  # a source that lists its classes
            _check_names(section, set(section.names) - set(declared), declared)
        decoded = decoders.map(source.records(), builder.read_images)
        excluded = exclusion_list.read(section.exclude) if section.exclude else frozenset[str]()
        rows = (
            row
            for record, images in decoded
            for row in builder.rows(record, images)
            if not _is_excluded(row, record.location, excluded, quarantine)
        )
        first = next(rows, None)
        if first is None:
            if not builder.records:
                raise DataError(f"{section.path}: the source has no rows")
            raise DataError(f"{section.path}: none of its {builder.records} rows is usable: {quarantine.describe()}")
        yield from itertools.islice(itertools.chain([first], rows), section.limit)
        if isinstance(builder, PairBuilder) and not declared and section.limit is None:
            _check_names(section, builder.unmet_names, builder.met_names)
        notes["rows_read"] = builder.records
        notes["clipped_boxes"] = builder.clipped
        notes["quarantined"] = {what: dict(kinds) for what, kinds in quarantine.counts.items()}
        notes["outside_files"] = len(access.outside)
        _check_lost(section, quarantine, builder.records)
    if access.outside:
        logger.warning(
            "%s: %d rows name files outside of it, such as %r; `ingest.outside_files: refuse` leaves them out",
            section.path,
            len(access.outside),
            access.outside[0],
        )
    if quarantine.examples:
        logger.warning("%s: skipped, see %s: %s", section.path, quarantine.path.name, quarantine.describe())


def _image_access(section: IngestConfig) -> ImageAccess:
    # A dataset of the hub names its own files by their address.
    own = (f"hf://datasets/{section.path}",) if section.source == "datasets" else ()
    if is_remote(section.path):
        is_folder = not PurePosixPath(section.path).suffix
        own = (*own, section.path if is_folder else section.path.rpartition("/")[0])
    in_pod = "KUBERNETES_SERVICE_HOST" in os.environ
    refuse = section.outside_files == "refuse" or (section.outside_files is None and in_pod)
    return ImageAccess((*own, *section.addresses), refuse_outside=refuse)


def _check_lost(section: IngestConfig, quarantine: Quarantine, records: int) -> None:
    """Raise DataError if more rows than allowed are in the quarantine for other reasons than `NO_LOSS`."""
    lost = sum(count for kind, count in quarantine.counts["rows"].items() if kind not in NO_LOSS)
    if lost > section.max_quarantined * max(records, FEW_ROWS):
        raise DataError(
            f"{section.path}: {lost} of {records} rows are unusable, more than ingest.max_quarantined "
            f"({section.max_quarantined:g}) allows: {quarantine.describe()}; correct the source, or raise the limit"
        )


def _check_names(section: IngestConfig, unknown: Collection[str], known: Iterable[str]) -> None:
    """Raise DataError if `ingest.names` renames a label that the source does not have."""
    if unknown:
        name = min(unknown)
        raise DataError(f"ingest.names: {section.path} has no label {name!r}; {nearest(name, known)}")


def _is_excluded(row: dict[str, Any], location: str, excluded: frozenset[str], quarantine: Quarantine) -> bool:
    """Whether the exclusion list has the row or one of its images; if so, add it to the quarantine."""
    images = row["images"] if "images" in row else [row["image"]]
    if not excluded or not excluded & {row["uid"], *(dataset.uid(image) for image in images)}:
        return False
    quarantine.add("rows", location, "", RecordError(TAKEN_DOWN, row["uid"]))
    return True


def _make_builder(
    section: IngestConfig, columns: ColumnsConfig, quarantine: Quarantine, access: ImageAccess, notes: dict[str, Any]
) -> PairBuilder | ConversationBuilder:
    split: dict[str, Any] = {"holdout": section.holdout, "seed": section.seed}
    if section.source in PARSERS:
        defaults = {"source": section.preference_source} if section.source == "preferences" else {}
        return ConversationBuilder(PARSERS[section.source], defaults, columns.split, quarantine, access, **split)
    notes["columns"] = columns.mapped
    notes["captions"] = f"column {columns.caption}"
    if not columns.caption:
        notes["captions"] = "made from " + " or ".join(key for key in ("boxes", "lines") if key in columns.mapped)
        if section.columns.caption:
            logger.warning("%s: no caption column; captions are %s", section.path, notes["captions"])
    return PairBuilder(columns, quarantine, access, licence=section.licence, names=section.names, **split)


def _count_splits(rows: Iterator[dict[str, Any]], notes: dict[str, Any]) -> Iterator[dict[str, Any]]:
    splits = Counter(train=0, test=0)
    for row in rows:
        splits[row["split"]] += 1
        yield row
    if not splits.total():
        raise DataError("ingest.scenes: no rows, because every number of images is 0; set one of them")
    notes["splits"] = dict(splits)
    unknown = notes.get("quarantined", {}).get("rows", {}).get(UNKNOWN_SPLIT, 0)
    if unknown and not min(splits.values()):
        raise DataError(
            f"ingest.columns.split: {unknown} rows have an unknown split, and the others are all of one split: "
            f"use the names {', '.join(SPLITS)}, or leave columns.split empty to split by ingest.holdout"
        )
    if not splits["train"]:
        logger.warning("the split train is empty: %s", notes["splits"])
