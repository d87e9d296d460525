"""The model artifact: a Hugging Face folder that `from_pretrained` loads, and a `card.json`."""

import hashlib
import json
import logging
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

from vlmflow.artifacts.maker import made
from vlmflow.errors import ModelError

logger = logging.getLogger(__name__)

CARD = "card.json"


class Checkpoint:
    """A model artifact that exists.

    Args:
        path: its folder.

    Raises:
        ModelError: the folder holds no model.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not (self.path / "config.json").exists():
            raise ModelError(f"{path}: no model here (no config.json); give a folder that save_pretrained wrote")
        card = self.path / CARD
        self.card: dict[str, Any] = json.loads(card.read_text(encoding="utf-8")) if card.exists() else {}

    @cached_property
    def hash(self) -> str:
        """sha256 over the names and contents of every file but the card, in order."""
        digest = hashlib.sha256()
        for file in sorted(p for p in self.path.rglob("*") if p.is_file() and p.name != CARD):
            digest.update(str(file.relative_to(self.path)).encode() + b"\0")
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()


def save(path: str | Path, model: Any, processor: Any, *, weights: Any = None, **card: Any) -> Checkpoint:
    """Write a model, its processor and its card: hash, family, step, recipe, parent, datasets, curve, notes.

    Args:
        weights: the state dict where the model has but a share of it.
    """
    folder = Path(path)
    model.save_pretrained(folder, state_dict=weights)
    processor.save_pretrained(folder)
    saved = Checkpoint(folder)
    card = {"hash": saved.hash, **card, **({"made": by} if (by := made()) else {})}
    (folder / CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return Checkpoint(folder)


def hand_on(model_in: str | Path, out: str | Path, reason: str) -> Checkpoint:
    """Pass a model through a step that has nothing to do: the same files, and a card that says why."""
    before = Checkpoint(model_in)
    logger.warning("skipped: %s; the model is handed on unchanged", reason)
    shutil.copytree(before.path, out, dirs_exist_ok=True)
    card = {**before.card, "skipped": reason}
    (Path(out) / CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return Checkpoint(out)
