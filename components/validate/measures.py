"""What the expectations look at: a table with a row for each row of a dataset, and no pixels in it.

A column that ends in `_fault` is null where all is well and says what is wrong elsewhere, so that a
report shows the reasons themselves. Headers of pictures are read; the pixels are not decoded.
"""

import hashlib
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from components.dataset import SCHEMAS, Dataset
from components.ingest import picture
from components.ingest.quarantine import Unusable

BATCH_ROWS = 256  # so many pictures are in memory at once
IMAGE_MARK = "<image>"
EDGE = 0.5  # pixels by which rounding may carry a box over the edge


def measured(data: Dataset) -> pd.DataFrame:
    """Return the table for `data`, whose schema is pairs, conversations or preferences."""
    measure = {"pairs": _pairs, "conversations": _conversations, "preferences": _preferences}[data.card.schema]
    pictures = _Pictures()
    frames = [pd.DataFrame(measure(batch, pictures)) for batch in data.batches(size=BATCH_ROWS)]
    if not frames:  # a dataset without rows has the columns that the suite names all the same
        empty = pa.RecordBatch.from_pylist([], schema=SCHEMAS[data.card.schema].arrow_schema)
        frames = [pd.DataFrame(measure(empty, pictures))]
    frame = pd.concat(frames, ignore_index=True)
    frame["split_fault"] = pictures.straddling(frame["split"].tolist())
    return frame


class _Pictures:
    """Reads each different picture's header once, and remembers which rows show it."""

    def __init__(self) -> None:
        self.sizes: dict[bytes, tuple[int, int] | str] = {}
        self.rows: list[list[bytes]] = []

    def row(self, pictures: list[bytes | None]) -> list[tuple[int, int] | str]:
        """Return (width, height) of each of a row's pictures, or why it cannot be read."""
        digests = [hashlib.blake2b(encoded or b"", digest_size=16).digest() for encoded in pictures]
        for digest, encoded in zip(digests, pictures, strict=True):
            if digest not in self.sizes:
                try:
                    self.sizes[digest] = picture.size(encoded or b"")
                except Unusable as reason:
                    self.sizes[digest] = str(reason)
        self.rows.append(digests)
        return [self.sizes[digest] for digest in digests]

    def straddling(self, splits: list[str]) -> list[str | None]:
        """Say of each training row whether one of its pictures is in the test split too."""
        sides = list(zip(self.rows, splits, strict=True))
        tested = {digest for digests, split in sides if split == "test" for digest in digests}
        return [
            "the picture is in the test split too" if split == "train" and not tested.isdisjoint(digests) else None
            for digests, split in sides
        ]


def _pairs(batch: pa.RecordBatch, pictures: _Pictures) -> dict[str, Any]:
    widths, heights = batch["width"].to_numpy(), batch["height"].to_numpy()
    image_faults, size_faults = [], []
    for i, image in enumerate(batch["image"].field("bytes")):
        found = pictures.row([image.as_py()])[0]
        stated = (int(widths[i]), int(heights[i]))
        image_faults.append(found if isinstance(found, str) else None)
        wrong = not isinstance(found, str) and found != stated
        size_faults.append(f"stated {stated[0]}×{stated[1]}, is {found[0]}×{found[1]}" if wrong else None)
    captions = _count("utf8_length", pc.call_function("utf8_trim_whitespace", [batch["caption"]]))
    said = captions + _count("utf8_length", batch["label"])
    said = said + _count("list_value_length", batch["regions"]) + _count("list_value_length", batch["lines"])
    return {
        "uid": batch["uid"].to_pylist(),
        "image_fault": _text(image_faults),
        "size_fault": _text(size_faults),
        "caption_length": captions,
        "silent_fault": _text(["no caption, region, line or label" if n == 0 else None for n in said]),
        "region_fault": _box_faults(batch["regions"], "phrase", widths, heights),
        "line_fault": _box_faults(batch["lines"], "text", widths, heights),
        "split": batch["split"].to_pylist(),
    }


def _box_faults(column: pa.ListArray, words: str, widths: np.ndarray, heights: np.ndarray) -> pd.Series:
    """Find boxes without area or outside of their picture, and empty words, in all rows of a batch at once."""
    rows, items = pc.call_function("list_parent_indices", [column]).to_numpy(), column.flatten()
    faults: dict[int, str] = {}
    if len(items):
        x0, y0, x1, y1 = (pc.fill_null(items.field(name), np.nan).to_numpy() for name in ("x0", "y0", "x1", "y1"))
        inside = (x0 >= -EDGE) & (y0 >= -EDGE) & (x1 <= widths[rows] + EDGE) & (y1 <= heights[rows] + EDGE)
        empty = _count("utf8_length", items.field(words)) == 0
        for fault, wrong in (("box outside of its picture", ~inside), ("box without area", ~((x1 > x0) & (y1 > y0)))):
            faults |= dict.fromkeys(rows[wrong].tolist(), fault)
        faults |= dict.fromkeys(rows[empty].tolist(), f"box without {words}")
    return _text([faults.get(i) for i in range(len(column))])


def _conversations(batch: pa.RecordBatch, pictures: _Pictures) -> dict[str, Any]:
    rows = batch.select(["uid", "messages", "task", "split"]).to_pylist()
    counts = _count("list_value_length", batch["images"]).tolist()
    turns = [_messages_fault(row["messages"], count) for row, count in zip(rows, counts, strict=True)]
    return {
        "uid": [row["uid"] for row in rows],
        "image_fault": _image_faults(batch["images"], pictures),
        "messages_fault": _text(turns),
        "text_length": [sum(len(m["content"] or "") for m in row["messages"] or []) for row in rows],
        "task": [row["task"] for row in rows],
        "split": [row["split"] for row in rows],
    }


def _preferences(batch: pa.RecordBatch, pictures: _Pictures) -> dict[str, Any]:
    rows = batch.select(["uid", "prompt", "chosen", "rejected", "source", "split"]).to_pylist()
    texts = {name: [(row[name] or "").strip() for row in rows] for name in ("prompt", "chosen", "rejected")}
    same = [chosen == rejected for chosen, rejected in zip(texts["chosen"], texts["rejected"], strict=True)]
    return {
        "uid": [row["uid"] for row in rows],
        "image_fault": _image_faults(batch["images"], pictures),
        **{f"{name}_length": [len(text) for text in column] for name, column in texts.items()},
        "choice_fault": _text(["chosen and rejected are the same" if equal else None for equal in same]),
        "source": [row["source"] for row in rows],
        "split": [row["split"] for row in rows],
    }


def _image_faults(column: pa.ListArray, pictures: _Pictures) -> pd.Series:
    faults: list[str | None] = []
    for images in column:
        found = pictures.row([image["bytes"] for image in images.as_py() or []])
        faults.append(next((size for size in found if isinstance(size, str)), None) if found else "no picture")
    return _text(faults)


def _messages_fault(messages: list[dict[str, str]] | None, images: int) -> str | None:
    """Say what breaks the form: user and assistant in turns, the assistant last; a system message may lead."""
    turns = [m for i, m in enumerate(messages or []) if not (i == 0 and m["role"] == "system")]
    if not turns:
        return "no message"
    for i, message in enumerate(turns):
        due = ("user", "assistant")[i % 2]
        if message["role"] != due:
            return f"message {i + 1} is by {message['role']!r}, not by {due!r}"
        if not (message["content"] or "").strip() and (due == "assistant" or not images):
            return f"message {i + 1}, of {due!r}, is empty"
        if due == "assistant" and IMAGE_MARK in message["content"]:
            return f"message {i + 1}, an answer, holds {IMAGE_MARK}"
    if turns[-1]["role"] != "assistant":
        return "the last message is not the assistant's"
    marks = sum((message["content"] or "").count(IMAGE_MARK) for message in turns)
    return f"{marks} {IMAGE_MARK} for {images} pictures" if marks not in (0, images) else None


def _count(function: str, column: pa.Array) -> np.ndarray:
    """Apply an Arrow function that counts; null counts nothing."""
    return pc.fill_null(pc.call_function(function, [column]), 0).to_numpy()


def _text(values: list[str | None]) -> pd.Series:
    return pd.Series(values, dtype=object)
