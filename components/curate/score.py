"""Image-text scores: the scoring encoder, and the threshold or fraction that selects pairs by score."""

import json
import logging
import math
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from components.curate.config import ScoreConfig
from vlmflow.config import recipes
from vlmflow.errors import ModelError, RecipeError

if TYPE_CHECKING:
    from vlmflow.training.pretraining.config import PretrainConfig

logger = logging.getLogger(__name__)

MIN_SEPARATION = 0.68  # below this separation the scores look like one group; see `otsu_threshold`


def load_bootstrap_config(values: dict[str, Any], seed: int) -> "PretrainConfig":
    """Return the configuration of the bootstrap encoder's training from the mapping in the recipe.

    Raises:
        RecipeError: unknown key, wrong type or invalid value.
    """
    from vlmflow.training.pretraining.config import PretrainConfig

    training = {"seed": seed} | values.get("training", {})
    section = recipes.load(PretrainConfig, {"bootstrap": values | {"training": training}}, "bootstrap")
    if section.training.seconds is not None:
        raise RecipeError("bootstrap.training.seconds: what is kept must not hang on the machine; give max_steps")
    return section


def train_encoder(pairs: Path, out: Path, config: "PretrainConfig") -> None:
    """Train a dual encoder on the training split of `pairs` and write it to `out`."""
    from vlmflow.training.pretraining.training import pretrain

    pretrain(pairs=pairs, conversations=None, out=out, section=config)


def resolve_model(model: str) -> Path:
    """Return the folder of a model, given its folder or its Hugging Face id; download it if necessary.

    Raises:
        ModelError: it is not a folder and cannot be downloaded.
    """
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(model, allow_patterns=["*.json", "*.txt", "*.model", "*.jinja", "*.safetensors"]))
    except (HFValidationError, OSError) as error:  # HTTP errors of huggingface_hub are OSErrors
        reason = " ".join(str(error).split())
        raise ModelError(
            f"score.model {model!r}: no such folder, and the download from the Hugging Face Hub failed: {reason}"
        ) from None


def write_card(scorer: Path, **facts: Any) -> None:
    """Write the `card.json` of the scorer."""
    scorer.mkdir(parents=True, exist_ok=True)
    (scorer / "card.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def select_by_score(scores: np.ndarray, uids: list[str], config: ScoreConfig) -> tuple[np.ndarray, float]:
    """Return which of the scored pairs to keep, (N,) bool, and the smallest score that is kept.

    With a fraction exactly ceil(N * fraction) pairs are kept; ties go to the smaller uid.
    """
    if config.fraction is not None:
        count = math.ceil(Fraction(repr(config.fraction)) * len(scores))  # exact: 0.1 * 30 exceeds 3 in floating point
        best = sorted(range(len(scores)), key=lambda row: (-scores[row], uids[row]))[:count]
        keep = np.zeros(len(scores), dtype=bool)
        keep[best] = True
        return keep, float(scores[best[-1]])
    threshold = otsu_threshold(scores)[0] if config.threshold == "otsu" else float(config.threshold)
    return scores >= threshold, threshold


def otsu_threshold(scores: np.ndarray) -> tuple[float, float]:
    """Split the scores in two groups with the smallest variance within the groups (Otsu's method).

    Returns:
        threshold: smallest score of the upper group.
        separation: variance between the groups over total variance, 0 to 1: 0.64 for one Gaussian, 0.75 for
            uniform scores, more for two groups.

    Source: Otsu 1979, eqs. 18 and 22, over the sorted scores instead of a histogram.
    """
    ordered = np.sort(scores.astype(np.float64))
    count = np.arange(1, len(ordered))
    below = np.cumsum(ordered)[:-1] / count
    above = (ordered.sum() - np.cumsum(ordered)[:-1]) / (len(ordered) - count)
    between = count * (len(ordered) - count) * (above - below) ** 2 / len(ordered) ** 2
    between[ordered[1:] == ordered[:-1]] = 0  # no split between equal scores
    if not len(between) or not between.max() > 0:
        return float(ordered[0]), 0.0
    best = int(between.argmax())
    return float(ordered[best + 1]), float(between[best] / ordered.var())
