"""What one pass over a dataset measures, row by row."""

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
from components.curate.engine import Engine, parts
from vlmflow.artifacts.dataset import Dataset, uid
from vlmflow.images import image_statistics
from vlmflow.images.near_duplicates import Cells, Pictures
from vlmflow.runtime.code_hash import code_hash
from vlmflow.runtime.step_cache import key

_LISTS = ("uid", "split", "reason", "finding", "personal", "rewritten", "caption", "pair")
BATCH = 512  # rows in memory at a time
COLUMNS = ["uid", "image", "caption", "split", "label", "regions", "lines"]
MEASURES = pa.schema(
    {
        "uid": pa.string(),
        "split": pa.string(),
        "reason": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "contrast": pa.float32(),
        "correlation": pa.float32(),
        "entropy": pa.float32(),
        "colour": pa.float32(),
        "sharpness": pa.float32(),
        "hash": pa.uint64(),
        "cells": pa.binary(3 * image_statistics.CELLS**2),
        "coarse": pa.binary(3 * image_statistics.COARSE**2),
        "look": pa.binary(16),
        "finding": pa.struct(
            {"rule": pa.string(), "reason": pa.string(), "value": pa.float64(), "threshold": pa.float64()}
        ),
        "personal": pa.list_(pa.string()),
        "rewritten": pa.string(),
        "caption": pa.binary(16),
        "annotated": pa.bool_(),
        "pair": pa.binary(16),
        "digest": pa.binary(16),
        "group": pa.binary(16),
    }
)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The rows of a dataset as the rules see them: N rows, in order; none of the pictures themselves."""

    uids: list[str]
    splits: list[str]
    reasons: list[str]  # why a picture cannot be decoded, or ""
    short_side: np.ndarray  # px
    aspect: np.ndarray
    contrast: np.ndarray
    correlation: np.ndarray
    entropy: np.ndarray  # bits
    colour: np.ndarray
    sharpness: np.ndarray  # 0 where the recipe does not ask for it
    hashes: np.ndarray  # (N,) uint64
    coarse: np.ndarray  # (N, 48) uint8
    looks: np.ndarray  # (N,) 16 bytes
    cells: Cells
    findings: list[caption_rules.Finding | None]  # what the first rule of text that fails has against the caption
    personal: list[tuple[str, ...]]  # kinds of personal data in the caption
    rewritten: dict[int, str]  # by row: the caption without its personal data, where the recipe removes it
    captions: list[bytes]  # digest of the caption by which two are the same
    annotated: np.ndarray  # bool: has regions, lines or a label, so that it is of use without a caption
    pairs: list[bytes]  # digest of all that a row holds but its uid
    digests: np.ndarray  # (N,) 16 bytes: the uid of the picture alone
    groups: np.ndarray  # (N,) int: rows of which one picture needs only one

    @property
    def test(self) -> np.ndarray:
        """(N,) bool: the row is of the test split."""
        return np.array([split == "test" for split in self.splits], dtype=bool)

    def looked(self, rows: np.ndarray) -> Pictures:
        """The pictures of `rows`, in this order, as near copies are found by."""
        return Pictures(
            self.hashes[rows],
            self.looks[rows],
            self.coarse[rows],
            self.cells.at(rows),
            self.groups[rows],
            self.test[rows],
        )

    @property
    def priority(self) -> np.ndarray:
        """(N,) row numbers by uid, so that what is kept of a few duplicates does not depend on the rows' order."""
        return np.array(sorted(range(len(self.uids)), key=lambda row: (self.uids[row], row)), dtype=np.int64)


@dataclass(frozen=True)
class Look:
    """Measure the rows of a part of a shard by the recipe's `section`: every picture is decoded once."""

    section: CurateConfig

    def __call__(self, shard: str, groups: list[int]) -> pa.Table:
        """One row of `MEASURES` for each row of the shard's row groups, in order; `BATCH` in memory at a time."""
        with pq.ParquetFile(shard) as file:
            batches = file.iter_batches(batch_size=BATCH, row_groups=groups, columns=COLUMNS)
            return pa.Table.from_batches([self._measure(batch.to_pylist()) for batch in batches], schema=MEASURES)

    def _measure(self, rows: list[dict[str, Any]]) -> pa.RecordBatch:
        with image_statistics.quiet():
            sharpness = self.section.min_sharpness > 0
            seen = [image_statistics.look((row["image"] or {}).get("bytes"), sharpness=sharpness) for row in rows]
        statistics = image_statistics.statistics(seen)
        measures: dict[str, Any] = {name: [] for name in MEASURES.names}
        for row, picture in zip(rows, seen, strict=True):
            judged = caption_rules.judge(row["caption"], self.section)
            notes = [row["split"], row["label"] or "", row["regions"] or [], row["lines"] or []]
            # A caption without use counts as none; what is annotated differently is no duplicate.
            kind = "" if judged.finding else "captioned" if self.section.one_per_picture else row["caption"]
            measures["uid"].append(row["uid"])
            measures["split"].append(row["split"])
            measures["reason"].append(picture.reason)
            measures["width"].append(picture.width)
            measures["height"].append(picture.height)
            measures["finding"].append(judged.finding and asdict(judged.finding))
            measures["personal"].append(judged.personal)
            measures["rewritten"].append(judged.rewritten)
            measures["caption"].append(_digest([], caption_rules.normalised(row["caption"] or "")))
            measures["annotated"].append(bool(row["regions"] or row["lines"] or row["label"]))
            measures["pair"].append(_digest(notes, row["caption"] or "", (row["image"] or {}).get("bytes") or b""))
            measures["group"].append(_digest(notes, kind))
            measures["digest"].append(bytes.fromhex(uid((row["image"] or {}).get("bytes") or b"")))
        for name in ("contrast", "correlation", "entropy", "colour", "sharpness"):
            measures[name] = getattr(statistics, name)
        measures["hash"] = statistics.hashes
        measures["look"] = [look.tobytes() for look in statistics.looks]
        for name in ("cells", "coarse"):
            measures[name] = [row.tobytes() for row in getattr(statistics, name)]
        return pa.RecordBatch.from_pydict(measures, schema=MEASURES)


def measure(raw: Dataset, section: CurateConfig, engine: Engine) -> Measured:
    """Look at every row of `raw`, schema `pairs`, once; the outcome does not depend on the engine."""
    listed = sorted(caption_rules.wordlist(section.bad_words))  # what the files say now, not their names
    parameters = {"code": code_hash(__name__), "section": section.outcome, "bad_words": listed}
    tasks = [(key(shard=shard, groups=groups, **parameters), (path, groups)) for shard, path, groups, _ in parts(raw)]
    return _gather(engine.run(Look(section), tasks))


def _gather(shards: Iterable[pa.Table]) -> Measured:
    lists: dict[str, list[Any]] = {name: [] for name in _LISTS}
    arrays: dict[str, list[np.ndarray]] = {name: [] for name in MEASURES.names if name not in (*lists, "cells")}
    cells: list[np.ndarray] = []
    for shard in shards:
        for name, values in lists.items():
            values += shard[name].to_pylist()
        for name, chunks in arrays.items():
            chunks.append(_array(shard[name].combine_chunks()))
        for chunk in shard["cells"].chunks:  # left where they are, in the worker's file: most are never looked at
            cells.append(_array(chunk).view(np.uint8).reshape(-1, 3 * image_statistics.CELLS**2))
    found = {name: np.concatenate(chunks) for name, chunks in arrays.items()}
    sides = np.stack([found["width"], found["height"]], axis=1).astype(np.int64)
    return Measured(
        uids=lists["uid"],
        splits=[sys.intern(split) for split in lists["split"]],
        reasons=[sys.intern(reason) for reason in lists["reason"]],
        short_side=sides.min(axis=1),
        aspect=sides.max(axis=1) / np.maximum(1, sides.min(axis=1)),
        contrast=found["contrast"],
        correlation=found["correlation"],
        entropy=found["entropy"],
        colour=found["colour"],
        sharpness=found["sharpness"],
        hashes=found["hash"],
        coarse=found["coarse"].view(np.uint8).reshape(-1, 3 * image_statistics.COARSE**2),
        looks=found["look"],
        cells=Cells(cells),
        findings=[caption_rules.Finding(**finding) if finding else None for finding in lists["finding"]],
        personal=[tuple(kinds) for kinds in lists["personal"]],
        rewritten={row: text for row, text in enumerate(lists["rewritten"]) if text is not None},
        captions=lists["caption"],
        annotated=found["annotated"],
        pairs=lists["pair"],
        digests=found["digest"],
        groups=np.unique(found["group"], return_inverse=True)[1],
    )


def _array(column: pa.Array) -> np.ndarray:
    """(N,) values, without a copy where Arrow keeps them plain; fixed binary as (N,) void."""
    if pa.types.is_fixed_size_binary(column.type):
        width = column.type.byte_width
        plain = np.frombuffer(column.buffers()[1], np.uint8, len(column) * width, column.offset * width)
        return plain.view(f"V{width}")
    return column.to_numpy(zero_copy_only=False)


def _digest(notes: list[Any], *parts: str | bytes) -> bytes:
    digest = hashlib.blake2b(json.dumps(notes).encode(), digest_size=16)
    for part in parts:
        digest.update(b"\0" + (part.encode() if isinstance(part, str) else part))
    return digest.digest()
