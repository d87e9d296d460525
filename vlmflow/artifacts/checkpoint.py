"""The model artifact: a Hugging Face folder that `from_pretrained` loads, with a `card.json`."""

import json
import logging
import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from vlmflow.artifacts.hashing import content_hash
from vlmflow.artifacts.producer import producer
from vlmflow.errors import ModelError

logger = logging.getLogger(__name__)

CARD = "card.json"


class Checkpoint:
    """An existing model artifact.

    Args:
        path: its folder.

    Raises:
        ModelError: the folder contains no model.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not (self.path / "config.json").exists():
            raise ModelError(f"{path}: not a model folder (config.json is missing); use one from save_pretrained")
        card = self.path / CARD
        self.card: dict[str, Any] = json.loads(card.read_text(encoding="utf-8")) if card.exists() else {}

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the sorted names and contents of all files except the card."""
        return content_hash(self.path, exclude={CARD})


def save(path: str | Path, model: Any, processor: Any, *, weights: Any = None, **card: Any) -> Checkpoint:
    """Write a model, its processor and its card.

    Args:
        path: the folder to write.
        model: a model with `save_pretrained`.
        processor: a processor with `save_pretrained`.
        weights: the full state dict, if the model holds only a shard of it.
        card: entries of the card, such as family, step, recipe, parent, datasets, curve and notes; `hash` and
            `producer` are added.
    """
    folder = Path(path)
    model.save_pretrained(folder, state_dict=weights)
    processor.save_pretrained(folder)
    saved = Checkpoint(folder)
    _write_card(folder, {"hash": saved.hash, **card, **({"producer": by} if (by := producer()) else {})})
    return Checkpoint(folder)


def load_weights(
    model_class: Any, path: str | Path, may_differ: Callable[[Any], set[str]] = lambda model: set()
) -> Any:
    """Load a model with `from_pretrained`, and refuse a checkpoint that does not give it exactly its weights.

    transformers initialises missing weights at random and ignores unknown ones, with a warning.

    Args:
        model_class: a class of transformers or of the zoo, or an Auto class.
        path: a folder, or a name on the Hugging Face Hub.
        may_differ: returns the names, for the loaded model, that may be missing or unknown.

    Raises:
        ModelError: weights are missing, unknown or of another shape.
    """
    model, report = model_class.from_pretrained(path, output_loading_info=True, trust_remote_code=False)
    exempt = may_differ(model)
    computed = {name for name, _ in model.named_buffers()}  # older checkpoints contain some, such as `position_ids`
    faults = {
        "missing": sorted(set(report["missing_keys"]) - exempt),
        "unknown": sorted(set(report["unexpected_keys"]) - exempt - computed),
        "of another shape": sorted(name for name, *_ in report["mismatched_keys"]),
    }
    if any(faults.values()):
        raise ModelError(
            f"{path}: {describe_faults(faults)} for {type(model).__name__}; use a checkpoint of this model"
        )
    return model


def describe_faults(faults: dict[str, list[str]]) -> str:
    """Name the weights of each fault, shortened: `2 weights are missing (a, b)`."""

    def clause(fault: str, names: list[str]) -> str:
        count = "1 weight is" if len(names) == 1 else f"{len(names)} weights are"
        return f"{count} {fault} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"

    return ", ".join(clause(fault, names) for fault, names in faults.items() if names)


def copy_unchanged(model_in: str | Path, out: str | Path, reason: str) -> Checkpoint:
    """Copy a model through a step that has nothing to do; the new card contains the reason as `skipped`."""
    source = Checkpoint(model_in)
    logger.warning("skipped: %s; the model is copied unchanged", reason)
    shutil.copytree(source.path, out, dirs_exist_ok=True)
    _write_card(Path(out), {**source.card, "skipped": reason})
    return Checkpoint(out)


def _write_card(folder: Path, card: dict[str, Any]) -> None:
    (folder / CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
