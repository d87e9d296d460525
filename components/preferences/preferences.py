"""Preference pairs from the model's own mistakes.

The model lists the objects of training pictures, sampled; where it names one that is not there, the true
list is preferred to its own. On-policy pairs teach about what this model does, not about what others do.
"""

import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.preferences.config import PreferenceConfig
from vlmflow.artifacts import dataset
from vlmflow.artifacts.checkpoint import Checkpoint
from vlmflow.artifacts.dataset import Dataset
from vlmflow.config import recipes as recipes
from vlmflow.evaluation import objects
from vlmflow.images.decoding import decode
from vlmflow.inference.prompts import NAME_OBJECTS

logger = logging.getLogger(__name__)


def collect_preferences(model: Path, conversations: Path, out: Path, recipe: str, section: str) -> Dataset:
    """Write the dataset of preferences; empty, with the reason on its card, where there is nothing to prefer."""
    data = Dataset(conversations, "conversations")
    parents = [data.hash, Checkpoint(model).hash]
    preferring = recipes.load(PreferenceConfig, recipe, section)
    categories: list[str] = data.card.notes.get("categories", [])
    asked = [
        r for r in data.rows() if r["split"] == "train" and any(m["content"] == NAME_OBJECTS for m in r["messages"])
    ]
    reason = ""
    if recipes.section(recipe, section) is None:
        reason = f"the recipe has no section {section!r}"
    elif not asked:
        reason = "the data names no objects, so nothing tells the truth from what was made up"
    if reason:
        logger.warning("skipped: %s; no preferences", reason)
        notes = {"skipped": reason}
        return dataset.write(
            out, "preferences", [], step="preferences", parents=parents, notes=notes, revision=data.card.revision
        )
    from vlmflow.inference.loading import chat, load  # not for reading a recipe

    rng = random.Random(preferring.seed)
    asked = rng.sample(asked, min(preferring.pictures, len(asked)))
    answers = chat(
        load(model),
        [decode(row["images"][0]["bytes"]) for row in asked],
        [NAME_OBJECTS] * len(asked),
        batch_size=256,
        temperature=preferring.temperature,
        seed=preferring.seed,
    )

    def rows() -> Iterator[dict[str, Any]]:
        for row, answer in zip(asked, answers, strict=True):
            contents = [message["content"] for message in row["messages"]]
            truth = contents[contents.index(NAME_OBJECTS) + 1]
            true, said = objects.parse(truth, categories), objects.parse(answer, categories)
            if any(category not in true for category in said):
                name = dataset.uid(row["uid"].encode(), truth, answer)
                yield {"uid": name, "pair": row["pair"], "images": row["images"], "prompt": NAME_OBJECTS, "chosen": truth,
                       "rejected": answer, "source": "model", "split": "train"}  # fmt: skip

    written = dataset.write(
        out,
        "preferences",
        rows(),
        step="preferences",
        recipe=preferring.model_dump(),
        parents=parents,
        notes={"asked": len(asked)},
        revision=data.card.revision,
    )
    logger.info("%d of %d answers made something up", len(written), len(asked))
    return written
