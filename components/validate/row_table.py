"""The table that the expectations check: one row per row of a dataset, without pixels.

A column with the suffix `_fault` is null for correct rows and else describes the fault, so that reports show reasons.
"""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from components.validate.image_checks import ImageChecker
from vlmflow.artifacts.dataset import IMAGE_MARKER, SCHEMAS, Dataset
from vlmflow.images.decontamination import find_leaks, load_evaluation_images

BATCH_ROWS = 256  # images in memory at once
EMPTY = "no caption, region, line or label"
EDGE = 0.5  # pixels; tolerance for rounding of boxes at the edge


def build_table(data: Dataset, decode: int | None, decontaminate: tuple[str, ...] = ()) -> pd.DataFrame:
    """Return the table, one row per row of `data`.

    Args:
        data: pairs, conversations or preferences.
        decode: approximate number of images to decode; None decodes all.
        decontaminate: evaluation sets, for the column `evaluation_fault`.
    """
    measure = {"pairs": _pairs, "conversations": _conversations, "preferences": _preferences}[data.card.schema]
    checker = ImageChecker(share=1.0 if decode is None else min(1.0, decode / max(1, len(data))))
    frames = [pd.DataFrame(measure(batch, checker)) for batch in data.batches(size=BATCH_ROWS)]
    if not frames:  # an empty dataset still needs the columns of the suite
        empty = pa.RecordBatch.from_pylist([], schema=SCHEMAS[data.card.schema].arrow_schema)
        frames = [pd.DataFrame(measure(empty, checker))]
    frame = pd.concat(frames, ignore_index=True)
    split = frame["split"].to_numpy()
    both = checker.in_both_splits(test=split == "test", train=split == "train")
    frame["split_fault"] = _text(["the image is also in the test split" if one else None for one in both])
    if decontaminate:
        shown = {
            leak.uid: f"shows {leak.evaluation_image}"
            for leak in find_leaks(data, load_evaluation_images(decontaminate))
        }
        frame["evaluation_fault"] = _text([shown.get(uid) for uid in frame["uid"]])
    return frame


def _pairs(batch: pa.RecordBatch, checker: ImageChecker) -> dict[str, Any]:
    widths, heights = (pc.fill_null(batch[name], 0).to_numpy() for name in ("width", "height"))
    image_faults, size_faults = [], []
    for i, image in enumerate(batch["image"].field("bytes")):
        found = checker.check_row([image.as_py()])[0]
        unread = isinstance(found, str)
        wrong = not unread and found != (widths[i], heights[i])
        image_faults.append(found if unread else None)
        size_faults.append(f"stated {widths[i]}×{heights[i]}, is {found[0]}×{found[1]}" if wrong else None)
    captions = _count("utf8_length", pc.call_function("utf8_trim_whitespace", [batch["caption"]]))
    said = captions + _count("utf8_length", batch["label"])
    said = said + _count("list_value_length", batch["regions"]) + _count("list_value_length", batch["lines"])
    content = list(zip(said, batch["split"].to_pylist(), strict=True))
    return {
        "uid": batch["uid"].to_pylist(),
        "image_fault": _text(image_faults),
        "size_fault": _text(size_faults),
        "caption_length": captions,
        "empty_fault": _text([EMPTY if n == 0 and split != "test" else None for n, split in content]),
        "empty_test_fault": _text([EMPTY if n == 0 and split == "test" else None for n, split in content]),
        "region_fault": _box_faults(batch["regions"], "phrase", widths, heights),
        "line_fault": _box_faults(batch["lines"], "text", widths, heights),
        "split": _categorical(batch["split"]),
    }


def _box_faults(column: pa.ListArray, words: str, widths: np.ndarray, heights: np.ndarray) -> pd.Series:
    """Find boxes without area or outside the image, and empty texts, in all rows of a batch at once."""
    rows, items = pc.call_function("list_parent_indices", [column]).to_numpy(), column.flatten()
    faults: dict[int, str] = {}
    if len(items):
        x0, y0, x1, y1 = (pc.fill_null(items.field(name), np.nan).to_numpy() for name in ("x0", "y0", "x1", "y1"))
        inside = (x0 >= -EDGE) & (y0 >= -EDGE) & (x1 <= widths[rows] + EDGE) & (y1 <= heights[rows] + EDGE)
        empty = _count("utf8_length", items.field(words)) == 0
        for fault, wrong in (("box outside the image", ~inside), ("box without area", ~((x1 > x0) & (y1 > y0)))):
            faults |= dict.fromkeys(rows[wrong].tolist(), fault)
        faults |= dict.fromkeys(rows[empty].tolist(), f"box without {words}")
    return _text([faults.get(i) for i in range(len(column))])


def _conversations(batch: pa.RecordBatch, checker: ImageChecker) -> dict[str, Any]:
    said = [[m or {"role": "", "content": ""} for m in messages or []] for messages in batch["messages"].to_pylist()]
    counts = _count("list_value_length", batch["images"]).tolist()
    return {
        "uid": batch["uid"].to_pylist(),
        "image_fault": _image_faults(batch["images"], checker),
        "messages_fault": _text([_messages_fault(m, count) for m, count in zip(said, counts, strict=True)]),
        "text_length": [sum(len(m["content"] or "") for m in messages) for messages in said],
        "task": _categorical(batch["task"]),
        "split": _categorical(batch["split"]),
    }


def _preferences(batch: pa.RecordBatch, checker: ImageChecker) -> dict[str, Any]:
    texts = {
        name: [(text or "").strip() for text in batch[name].to_pylist()] for name in ("prompt", "chosen", "rejected")
    }
    counts = _count("list_value_length", batch["images"]).tolist()
    return {
        "uid": batch["uid"].to_pylist(),
        "image_fault": _image_faults(batch["images"], checker),
        **{f"{name}_length": [len(text) for text in column] for name, column in texts.items()},
        "choice_fault": _text([_choice_fault(*row) for row in zip(*texts.values(), counts, strict=True)]),
        "source": _categorical(batch["source"]),
        "split": _categorical(batch["split"]),
    }


def _image_faults(column: pa.ListArray, checker: ImageChecker) -> pd.Series:
    faults: list[str | None] = []
    for images in column:
        found = checker.check_row([(image or {}).get("bytes") for image in images.as_py() or []])
        faults.append(next((size for size in found if isinstance(size, str)), None) if found else "no image")
    return _text(faults)


def _choice_fault(prompt: str, chosen: str, rejected: str, images: int) -> str | None:
    if chosen == rejected:
        return "chosen and rejected are the same"
    if IMAGE_MARKER in chosen or IMAGE_MARKER in rejected:
        return f"an answer contains {IMAGE_MARKER}"
    return _markers_fault(prompt.count(IMAGE_MARKER), images)


def _messages_fault(messages: list[dict[str, str]], images: int) -> str | None:
    """Check that user and assistant alternate and the assistant is last; a system message may come first."""
    turns = [m for i, m in enumerate(messages) if not (i == 0 and m["role"] == "system")]
    if not turns:
        return "no message"
    for i, message in enumerate(turns):
        expected = ("user", "assistant")[i % 2]
        if message["role"] != expected:
            return f"message {i + 1} has role {message['role']!r}, expected {expected!r}"
        if not (message["content"] or "").strip() and (expected == "assistant" or not images):
            return f"message {i + 1}, of {expected!r}, is empty"
        if expected == "assistant" and IMAGE_MARKER in message["content"]:
            return f"message {i + 1}, an answer, contains {IMAGE_MARKER}"
    if turns[-1]["role"] != "assistant":
        return "the last message is not from the assistant"
    return _markers_fault(sum((message["content"] or "").count(IMAGE_MARKER) for message in turns), images)


def _markers_fault(markers: int, images: int) -> str | None:
    """Check that all images have a marker or none; images without markers come before the text."""
    return f"{markers} {IMAGE_MARKER} markers for {images} images" if markers not in (0, images) else None


def _categorical(column: pa.StringArray) -> pd.Series:
    """Return a column of few distinct values, each in memory once; null becomes "", which no value set contains."""
    return pc.fill_null(column, "").to_pandas()


def _count(function: str, column: pa.Array) -> np.ndarray:
    """Apply a counting Arrow function; null counts as 0."""
    return pc.fill_null(pc.call_function(function, [column]), 0).to_numpy()


def _text(values: list[str | None]) -> pd.Series:
    return pd.Series(values, dtype=object)
