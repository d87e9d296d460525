"""Instruction data: conversations about each image, built from its annotations.

1. The caption answers `Describe the picture.`
2. The categories of the regions answer `Name the objects.` and, together with absent categories, yes-or-no questions.
3. The box of a region answers where its phrase is, if the image has no other region of that name.
4. Each line of text is cropped to an image of its own, whose text is the answer.
5. The label answers `Classify the picture.`, or with `statements` whether the caption is true.
"""

import io
import logging
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from components.instructions.config import InstructionConfig
from vlmflow.artifacts import dataset
from vlmflow.artifacts.dataset import Dataset
from vlmflow.errors import DataError
from vlmflow.evaluation import objects
from vlmflow.images.boxes import Box, format_box
from vlmflow.images.decoding import decode
from vlmflow.inference.prompts import DESCRIBE_IMAGE, NAME_OBJECTS

logger = logging.getLogger(__name__)

READ_LINE = "Read the line."
CLASSIFY_IMAGE = "Classify the picture."
TRUTH = {"true": "true", "yes": "true", "1": "true", "false": "false", "no": "false", "0": "false"}


def grounding_question(phrase: str) -> str:
    """Return the question for a referring expression."""
    return f"Where is the {phrase}?"


def presence_question(category: str) -> str:
    """Return the yes-or-no question of POPE (Li et al. 2023)."""
    return f"Is there {objects.article(category)} {category}?"


def statement_question(statement: str) -> str:
    """Return the question whether a statement about the image is true."""
    return f"{statement} True or false?"


def build_conversations(pairs: Path, out: Path, config: InstructionConfig) -> Dataset:
    """Write the conversations of every pair in `pairs`, in order.

    Raises:
        DataError: no pair yields a question (no captions, no regions, no lines, no labels), or a statement's label is
            neither true nor false.
    """
    source = Dataset(pairs, "pairs")
    categories = category_vocabulary(source)
    counts: Counter[str] = Counter()
    ambiguous: Counter[str] = Counter()
    left_out: Counter[str] = Counter()  # regions and lines beyond the limits of the recipe

    def rows() -> Iterator[dict[str, Any]]:
        for pair in source.rows():
            regions = unambiguous(pair["regions"] or [])
            ambiguous.update({pair["split"]: len(pair["regions"] or []) - len(regions)})
            for row in pair_conversations(pair, categories, config):
                counts[f"{row['task']}/{row['split']}"] += 1
                yield row
            for name, items, limit in (("regions", regions, config.regions), ("lines", pair["lines"], config.lines)):
                if (beyond := len(items or []) - limit) > 0:
                    left_out[name] += beyond

    notes: dict[str, Any] = {"categories": categories}
    written = dataset.write(
        out,
        "conversations",
        rows(),
        step="instructions",
        recipe=config.model_dump(),
        parents=[source.hash],
        revision=source.card.revision,
        notes=notes | {"rows": counts, "ambiguous_regions": ambiguous, "left_out": left_out},
    )
    if total := ambiguous.total():
        logger.info("%d regions share their phrase with another one of their image; no question asks for them", total)
    for name, count in left_out.items():
        logger.info("%d %s are not asked about: more than instructions.%s in an image", count, name, name)
    if not len(written):
        raise DataError(
            f"{pairs}: no pair has a caption, a region or a line of text, or a label to ask about; "
            "there is nothing to build conversations from"
        )
    return written


def write_empty(pairs: Path, out: Path, reason: str) -> None:
    """Write a dataset without conversations, with the reason on its card; later steps have nothing to ask."""
    logger.warning("no conversations are built: %s", reason)
    source = Dataset(pairs)
    facts = {"parents": [source.hash], "revision": source.card.revision, "notes": {"skipped": reason}}
    dataset.write(out, "conversations", [], step="instructions", **facts)


def category_vocabulary(pairs: Dataset) -> list[str]:
    """Return the categories of all regions of `pairs`, the most frequent first."""
    counts = Counter(
        region["category"] or region["phrase"] for row in pairs.rows(["regions"]) for region in row["regions"] or []
    )
    return [category for category, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def pair_conversations(
    pair: dict[str, Any], categories: list[str], config: InstructionConfig
) -> Iterator[dict[str, Any]]:
    """Yield the rows of schema `conversations` for one pair; they depend on its uid and the seed."""
    rng = random.Random(f"{config.seed}/{pair['uid']}")
    regions, lines = pair["regions"] or [], pair["lines"] or []

    def row(task: str, turns: list[tuple[str, str]], image: Any, part: str = "") -> dict[str, Any]:
        messages = [
            {"role": role, "content": content}
            for question, answer in turns
            for role, content in (("user", question), ("assistant", answer))
        ]
        name = dataset.uid(pair["uid"].encode(), task, part, *(m["content"] for m in messages))
        return {"uid": name, "pair": pair["uid"], "images": [image], "messages": messages, "task": task,
                "split": pair["split"]}  # fmt: skip

    present = [region["category"] or region["phrase"] for region in regions]
    if config.statements:
        if pair["caption"].strip() and pair["label"]:
            yield row("statement", [(statement_question(pair["caption"]), _truth(pair))], pair["image"])
    elif pair["caption"].strip():
        yield row("caption", [(DESCRIBE_IMAGE, pair["caption"])], pair["image"])
    if regions:
        yield row("objects", [(NAME_OBJECTS, objects.list_objects(present))], pair["image"])
        size = pair["width"], pair["height"]
        asked = unambiguous(regions)
        chosen = rng.sample(asked, min(config.regions, len(asked)))
        boxes = [(_name(r), format_box(Box(r["x0"], r["y0"], r["x1"], r["y1"], *size))) for r in chosen]
        if boxes:
            yield row("ground", [(grounding_question(phrase), box) for phrase, box in boxes], pair["image"])
        if yes_no := _yes_no(present, categories, config.yes_no, rng):
            yield row("vqa", yes_no, pair["image"])
    if pair["label"] and config.labels and not config.statements:
        yield row("classify", [(CLASSIFY_IMAGE, pair["label"])], pair["image"])
    if lines:
        image = decode(pair["image"]["bytes"])
        for i, line in enumerate(lines[: config.lines]):
            yield row("ocr", [(READ_LINE, line["text"])], _crop_line(image, line), str(i))


def unambiguous(regions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the regions whose phrase is neither the phrase nor the category of another one, each once.

    A question for `the ace` has no answer in an image of two aces.
    """
    boxes: dict[str, set[tuple[float, ...]]] = {}  # of each phrase and category
    for region in regions:
        for name in (_name(region), region["category"]):
            boxes.setdefault(_normalise(name), set()).add(_corners(region))
    found = {
        (_normalise(_name(region)), _corners(region)): region
        for region in reversed(regions)
        if _name(region).strip() and len(boxes[_normalise(_name(region))]) == 1
    }
    return list(found.values())[::-1]


def _name(region: dict[str, Any]) -> str:
    return region["phrase"] or region["category"]


def _normalise(name: str) -> str:
    return " ".join(name.lower().split())


def _corners(region: dict[str, Any]) -> tuple[float, ...]:
    return tuple(region[corner] for corner in ("x0", "y0", "x1", "y1"))


def _truth(pair: dict[str, Any]) -> str:
    label = pair["label"].strip().lower()
    if label not in TRUTH:
        raise DataError(
            f"instructions.statements: pair {pair['uid']}: the label {pair['label']!r} is neither true nor false; "
            "use true or false, or remove instructions.statements"
        )
    return TRUTH[label]


def _yes_no(present: list[str], categories: list[str], count: int, rng: random.Random) -> list[tuple[str, str]]:
    """Return as many questions with answer yes as with no, about random present and absent categories."""
    existing, absent = sorted(set(present)), [c for c in categories if c not in present]
    half = min((count + 1) // 2, len(existing), max(1, len(absent)))
    turns = [(presence_question(c), "yes") for c in rng.sample(existing, half)]
    turns += [(presence_question(c), "no") for c in rng.sample(absent, min(half, len(absent)))]
    rng.shuffle(turns)
    return turns[:count]


def _crop_line(image: Image.Image, line: dict[str, Any]) -> bytes:
    x0, y0 = max(0, int(line["x0"])), max(0, int(line["y0"]))
    x1, y1 = max(x0 + 1, min(image.width, round(line["x1"]))), max(y0 + 1, min(image.height, round(line["y1"])))
    strip = image.convert("RGB").crop((x0, y0, x1, y1))
    buffer = io.BytesIO()
    strip.save(buffer, "PNG")  # at its own aspect ratio: padded to a square, the letters of a long line would be tiny
    return buffer.getvalue()
