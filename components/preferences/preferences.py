"""Preference pairs from the model's own hallucinations.

The model lists the objects of training images, with sampling. Where its list contains an absent object, the true list
is chosen and its own is rejected. Such on-policy pairs show the mistakes of this model, not those of another.
"""

import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.preferences.config import PreferenceConfig
from vlmflow.artifacts import dataset
from vlmflow.artifacts.checkpoint import Checkpoint
from vlmflow.artifacts.dataset import IMAGE_MARKER, Dataset
from vlmflow.config import recipes
from vlmflow.evaluation import objects
from vlmflow.images.decoding import decode
from vlmflow.inference.prompts import NAME_OBJECTS, question_turns

logger = logging.getLogger(__name__)


def collect_preferences(model: Path, conversations: Path, out: Path, recipe: str, section: str) -> Dataset:
    """Write the dataset of preferences; without suitable data it is empty, with the reason on its card."""
    data = Dataset(conversations, "conversations")
    parents = [data.hash, Checkpoint(model).hash]
    config = recipes.load(PreferenceConfig, recipe, section)
    categories: list[str] = data.card.notes.get("categories", [])
    questions = [
        row
        for row in data.rows()
        if row["split"] == "train" and len(row["images"]) == 1 and NAME_OBJECTS in dict(question_turns(row["messages"]))
    ]
    reason = ""
    if recipes.section(recipe, section) is None:
        reason = f"the recipe has no section {section!r}"
    elif not questions:
        reason = "no training conversation lists the objects of its image"
    elif not categories:
        reason = "the conversations' card has no categories, by which objects are recognised"
    if reason:
        logger.warning("no preferences collected: %s", reason)
        notes = {"skipped": reason}
        return dataset.write(
            out, "preferences", [], step="preferences", parents=parents, notes=notes, revision=data.card.revision
        )
    from vlmflow.inference.generation import chat
    from vlmflow.inference.loading import load  # heavy imports, not needed if skipped

    rng = random.Random(config.seed)
    questions = rng.sample(questions, min(config.images, len(questions)))
    answers = chat(
        load(model),
        [decode(row["images"][0]["bytes"]) for row in questions],
        [NAME_OBJECTS] * len(questions),
        batch_size=256,
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
    )

    def rows() -> Iterator[dict[str, Any]]:
        for row, answer in zip(questions, answers, strict=True):
            truth = dict(question_turns(row["messages"]))[NAME_OBJECTS]
            present, answered = objects.parse(truth, categories), objects.parse(answer, categories)
            # A model that has learned little may write the image marker, which no text to train on may contain.
            if any(category not in present for category in answered) and IMAGE_MARKER not in answer:
                name = dataset.uid(row["uid"].encode(), truth, answer)
                yield {"uid": name, "pair": row["pair"], "images": row["images"], "prompt": NAME_OBJECTS,
                       "chosen": truth, "rejected": answer, "source": "model", "split": "train"}  # fmt: skip

    written = dataset.write(
        out,
        "preferences",
        rows(),
        step="preferences",
        recipe=config.model_dump(),
        parents=parents,
        notes={"asked": len(questions), "with_image_marker": sum(IMAGE_MARKER in answer for answer in answers)},
        revision=data.card.revision,
    )
    logger.info("%d of %d answers name an absent object", len(written), len(questions))
    return written
