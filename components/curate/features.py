"""Features of pairs: what the rules need of every image and caption, extracted in one pass over the dataset."""

import hashlib
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.curate import caption_rules
from components.curate.config import CurateConfig
from components.curate.engine import Engine, iter_parts
from components.curate.phrases import normalize_caption
from vlmflow.artifacts.dataset import Dataset, uid
from vlmflow.artifacts.hashing import cache_key
from vlmflow.images import altered_copies, image_statistics
from vlmflow.images.near_duplicates import Cells, ImageSet
from vlmflow.runtime.code_hash import code_hash

_LISTS = ("uid", "split", "decode_error", "finding", "pii", "rewritten", "caption_digest", "pair_digest")
BATCH = 512  # rows in memory at a time
COLUMNS = ["uid", "image", "caption", "split", "label", "regions", "lines"]
FEATURE_SCHEMA = pa.schema(
    {
        "uid": pa.string(),
        "split": pa.string(),
        "decode_error": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "contrast": pa.float32(),
        "correlation": pa.float32(),
        "entropy": pa.float32(),
        "colorfulness": pa.float32(),
        "sharpness": pa.float32(),
        "hash": pa.uint64(),
        "cells": pa.binary(3 * image_statistics.CELLS**2),
        "coarse": pa.binary(3 * image_statistics.COARSE**2),
        "look": pa.binary(16),
        "small": pa.binary(),
        "finding": pa.struct(
            {"rule": pa.string(), "reason": pa.string(), "value": pa.float64(), "threshold": pa.float64()}
        ),
        "pii": pa.list_(pa.string()),
        "undecided_language": pa.bool_(),
        "rewritten": pa.string(),
        "caption_digest": pa.binary(16),
        "annotated": pa.bool_(),
        "pair_digest": pa.binary(16),
        "image_uid": pa.binary(16),
        "group": pa.binary(16),
    }
)


@dataclass(frozen=True, kw_only=True)
class PairFeatures:
    """The features of the N rows of a dataset, in order, without the images."""

    uids: list[str]
    splits: list[str]
    decode_errors: list[str]  # why the image cannot be decoded, or ""
    short_side: np.ndarray  # px
    aspect: np.ndarray
    contrast: np.ndarray
    correlation: np.ndarray
    entropy: np.ndarray  # bits
    colorfulness: np.ndarray
    sharpness: np.ndarray  # variance of the Laplacian; 0 if the recipe does not use it
    hashes: np.ndarray  # (N,) uint64 dHashes
    coarse: np.ndarray  # (N, 48) uint8
    looks: np.ndarray  # (N,) 16 bytes
    cells: Cells
    small: list[np.ndarray]  # parts of (N, 32, 32, 3) uint8; empty if the recipe does not use them
    findings: list[caption_rules.CaptionFinding | None]  # of the first caption rule that fails
    pii: list[tuple[str, ...]]  # kinds of personal data in the caption
    undecided_languages: np.ndarray  # (N,) bool: the language of the caption was not recognized
    rewritten: dict[int, str]  # by row: the caption without its personal data
    caption_digests: list[bytes]  # of the normalized captions
    annotated: np.ndarray  # (N,) bool: has regions, lines or a label, and is useful without a caption
    pair_digests: list[bytes]  # of everything in the row except its uid
    image_uids: np.ndarray  # (N,) 16 bytes: the uid of the image alone
    groups: np.ndarray  # (N,) int: only rows of one group can be near duplicates of each other

    @property
    def is_test(self) -> np.ndarray:
        """(N,) bool: the row is of the test split."""
        return np.array([split == "test" for split in self.splits], dtype=bool)

    def signatures(self, rows: np.ndarray) -> ImageSet:
        """Return the image signatures of `rows`, in this order, for the search for near duplicates."""
        return ImageSet(
            self.hashes[rows],
            self.looks[rows],
            self.coarse[rows],
            self.cells.view(rows),
            self.groups[rows],
            self.is_test[rows],
        )

    @property
    def uid_order(self) -> np.ndarray:
        """(N,) row numbers sorted by uid, so that the row order does not decide which duplicate is kept."""
        return np.array(sorted(range(len(self.uids)), key=lambda row: (self.uids[row], row)), dtype=np.int64)


@dataclass(frozen=True)
class FeatureExtractor:
    """Extract the features of a part of a shard; every image is decoded once."""

    config: CurateConfig

    def __call__(self, shard: str, groups: list[int]) -> pa.Table:
        """Return a row of `FEATURE_SCHEMA` for each row of the row groups, in order; `BATCH` in memory at a time."""
        with pq.ParquetFile(shard) as file:
            batches = file.iter_batches(batch_size=BATCH, row_groups=groups, columns=COLUMNS)
            return pa.Table.from_batches([self._extract(batch.to_pylist()) for batch in batches], schema=FEATURE_SCHEMA)

    def _extract(self, rows: list[dict[str, Any]]) -> pa.RecordBatch:
        sharpness = self.config.min_sharpness > 0
        with image_statistics.ignore_pillow_warnings():
            images = [image_statistics.read_thumbnail(_image_bytes(row), sharpness=sharpness) for row in rows]
        extracted = [self._row_features(row, image) for row, image in zip(rows, images, strict=True)]
        statistics = image_statistics.compute_statistics(images)
        columns: dict[str, Any] = {
            name: [features[name] for features in extracted] for name in (extracted[0] if extracted else ())
        }
        for name in ("contrast", "correlation", "entropy", "colorfulness", "sharpness"):
            columns[name] = getattr(statistics, name)
        columns["hash"] = statistics.hashes
        columns["look"] = [look.tobytes() for look in statistics.signatures]
        if self.config.altered_copies is not None:
            black = np.zeros((image_statistics.SIDE, image_statistics.SIDE, 3), np.uint8)
            seen = np.array([black if image.thumbnail is None else image.thumbnail for image in images])
            columns["small"] = [small.tobytes() for small in altered_copies.small_images(seen)]
        else:
            columns["small"] = [None] * len(rows)
        for name in ("cells", "coarse"):
            columns[name] = [values.tobytes() for values in getattr(statistics, name)]
        return pa.RecordBatch.from_pydict(columns, schema=FEATURE_SCHEMA)

    def _row_features(self, row: dict[str, Any], image: image_statistics.Thumbnail) -> dict[str, Any]:
        verdict = caption_rules.check_caption(row["caption"], self.config)
        caption, data = row["caption"] or "", _image_bytes(row) or b""
        annotations = [row["split"], row["label"] or "", row["regions"] or [], row["lines"] or []]
        # An unusable caption counts as none. Images with different annotations are not duplicates.
        kind = "" if verdict.finding else "captioned" if self.config.dedup_images else row["caption"]
        return {
            "uid": row["uid"],
            "split": row["split"],
            "decode_error": image.reason,
            "width": image.width,
            "height": image.height,
            "finding": verdict.finding and asdict(verdict.finding),
            "pii": verdict.pii,
            "undecided_language": verdict.undecided_language,
            "rewritten": verdict.rewritten,
            "caption_digest": _digest([], normalize_caption(caption)),
            "annotated": bool(row["regions"] or row["lines"] or row["label"]),
            "pair_digest": _digest(annotations, caption, data),
            "image_uid": bytes.fromhex(uid(data)),
            "group": _digest(annotations, kind),
        }


def extract_features(raw: Dataset, config: CurateConfig, engine: Engine) -> PairFeatures:
    """Extract the features of every row of `raw`, schema `pairs`; the result does not depend on the engine."""
    blocklist = sorted(caption_rules.load_blocklist(config.blocklist))  # contents of the files, not their names
    parameters = {"code": code_hash(__name__), "config": config.outcome, "blocklist": blocklist}
    tasks = [
        (cache_key(shard=shard, groups=groups, **parameters), (path, groups))
        for shard, path, groups, _ in iter_parts(raw)
    ]
    return _concat_features(engine.run(FeatureExtractor(config), tasks))


def _concat_features(shards: Iterable[pa.Table]) -> PairFeatures:
    lists: dict[str, list[Any]] = {name: [] for name in _LISTS}
    arrays: dict[str, list[np.ndarray]] = {
        name: [] for name in FEATURE_SCHEMA.names if name not in (*lists, "cells", "small")
    }
    cells: list[np.ndarray] = []
    small: list[np.ndarray] = []
    for shard in shards:
        for name, values in lists.items():
            values += shard[name].to_pylist()
        for name, chunks in arrays.items():
            chunks.append(_array(shard[name].combine_chunks()))
        for chunk in shard["cells"].chunks:  # memory-mapped views: most cells are never read
            cells.append(_array(chunk).view(np.uint8).reshape(-1, 3 * image_statistics.CELLS**2))
        for chunk in shard["small"].chunks:
            if len(chunk) > chunk.null_count:
                size = altered_copies.SIDE
                small.append(np.frombuffer(chunk.buffers()[2], np.uint8).reshape(len(chunk), size, size, 3))
    merged = {name: np.concatenate(chunks) for name, chunks in arrays.items()}
    sides = np.stack([merged["width"], merged["height"]], axis=1).astype(np.int64)
    return PairFeatures(
        uids=lists["uid"],
        splits=[sys.intern(split) for split in lists["split"]],
        decode_errors=[sys.intern(reason) for reason in lists["decode_error"]],
        short_side=sides.min(axis=1),
        aspect=sides.max(axis=1) / np.maximum(1, sides.min(axis=1)),
        contrast=merged["contrast"],
        correlation=merged["correlation"],
        entropy=merged["entropy"],
        colorfulness=merged["colorfulness"],
        sharpness=merged["sharpness"],
        hashes=merged["hash"],
        coarse=merged["coarse"].view(np.uint8).reshape(-1, 3 * image_statistics.COARSE**2),
        looks=merged["look"],
        cells=Cells(cells),
        small=small,
        findings=[caption_rules.CaptionFinding(**finding) if finding else None for finding in lists["finding"]],
        pii=[tuple(kinds) for kinds in lists["pii"]],
        undecided_languages=merged["undecided_language"],
        rewritten={row: text for row, text in enumerate(lists["rewritten"]) if text is not None},
        caption_digests=lists["caption_digest"],
        annotated=merged["annotated"],
        pair_digests=lists["pair_digest"],
        image_uids=merged["image_uid"],
        groups=np.unique(merged["group"], return_inverse=True)[1],
    )


def _array(column: pa.Array) -> np.ndarray:
    """Return the values as an array (N,), without a copy where possible; fixed-size binary as void."""
    if pa.types.is_fixed_size_binary(column.type):
        width = column.type.byte_width
        values = np.frombuffer(column.buffers()[1], np.uint8, len(column) * width, column.offset * width)
        return values.view(f"V{width}")
    return column.to_numpy(zero_copy_only=False)


def _image_bytes(row: dict[str, Any]) -> bytes | None:
    return (row["image"] or {}).get("bytes")


def _digest(annotations: list[Any], *parts: str | bytes) -> bytes:
    digest = hashlib.blake2b(json.dumps(annotations).encode(), digest_size=16)
    for part in parts:
        digest.update(b"\0" + (part.encode() if isinstance(part, str) else part))
    return digest.digest()
