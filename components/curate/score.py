"""Scores: how well a dual encoder says that picture and caption belong together, and from where a pair is kept."""

import json
import logging
import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vlmflow.config import recipes
from vlmflow.errors import ModelError, RecipeError

if TYPE_CHECKING:
    from vlmflow.training.pretraining.config import PretrainConfig

logger = logging.getLogger(__name__)

TWO_GROUPS = 0.68  # separation below which the scores look like one group; see `otsu`


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Which encoder scores, and which scores are kept.

    `model` is none, bootstrap (a small encoder trained on the pairs that passed the other rules), or a folder
    or Hugging Face id of a CLIP- or SigLIP-like model. `threshold` is otsu (the best split of this set's own
    scores in two) or a cosine; `fraction`, where it is set, keeps that share of the pairs instead. `mask_text`
    paints over a picture's known lines of text first. `cache` is a folder that keeps what an encoder said.
    """

    model: str = "none"
    threshold: Literal["otsu"] | float = "otsu"
    fraction: float | None = None
    mask_text: bool = False
    cache: str | None = None
    batch_size: int = 256

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("model is none, bootstrap, a folder or a Hugging Face id; got an empty text")
        if self.threshold != "otsu" and not -1 <= float(self.threshold) <= 1:
            raise ValueError(f"threshold is otsu or a cosine from -1 to 1, got {self.threshold}")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ValueError(f"fraction is a share above 0 and at most 1, got {self.fraction}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")


def bootstrap_section(values: dict[str, Any], seed: int) -> "PretrainConfig":
    """The training of the bootstrapped encoder, as its recipe's mapping says.

    Raises:
        RecipeError: an unknown key, a wrong type or an impossible value.
    """
    from vlmflow.training.pretraining.config import PretrainConfig

    training = {"seed": seed} | values.get("training", {})
    section = recipes.load(PretrainConfig, {"bootstrap": values | {"training": training}}, "bootstrap")
    if section.training.seconds is not None:
        raise RecipeError("bootstrap.training.seconds: what is kept must not hang on the machine; give max_steps")
    return section


def bootstrap(pairs: Path, out: Path, section: "PretrainConfig") -> None:
    """Train a dual encoder on the training split of `pairs` and write it to `out`."""
    from vlmflow.training.pretraining.training import pretrain

    pretrain(pairs=pairs, conversations=None, out=out, section=section)


def resolve(model: str) -> Path:
    """The folder of a model that is named by its folder or its Hugging Face id.

    Raises:
        ModelError: neither a folder nor a model that can be fetched.
    """
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(model, allow_patterns=["*.json", "*.txt", "*.model", "*.jinja", "*.safetensors"]))
    except (HFValidationError, OSError) as error:  # the library's HTTP errors are OSErrors
        reason = " ".join(str(error).split())
        raise ModelError(
            f"score.model {model!r}: no such folder, and cannot be fetched from the Hub: {reason}"
        ) from None


def card(scorer: Path, **facts: Any) -> None:
    """Write the scorer's `card.json` where no training wrote one."""
    scorer.mkdir(parents=True, exist_ok=True)
    (scorer / "card.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def choose(scores: np.ndarray, uids: list[str], section: ScoreConfig) -> tuple[np.ndarray, float]:
    """Which of the scored pairs to keep, (N,) bool, and the least score that is kept.

    Exactly ceil(N * fraction) are kept where a fraction is asked for; ties go to the smaller uid.
    """
    if section.fraction is not None:
        count = math.ceil(Fraction(repr(section.fraction)) * len(scores))  # 0.1 * 30 is above 3 in floats
        best = sorted(range(len(scores)), key=lambda row: (-scores[row], uids[row]))[:count]
        keep = np.zeros(len(scores), dtype=bool)
        keep[best] = True
        return keep, float(scores[best[-1]])
    threshold = otsu(scores)[0] if section.threshold == "otsu" else float(section.threshold)
    return scores >= threshold, threshold


def otsu(scores: np.ndarray) -> tuple[float, float]:
    """The split of the scores in two that leaves the least variance within, and how well it parts them.

    Returns:
        threshold: the least score of the upper part.
        separation: variance between the parts over all variance, 0-1; 0.64 for one Gaussian, 0.75 for
            evenly spread scores, more for two groups.

    Source: Otsu 1979, eqs. 18 and 22, over the sorted scores themselves, not over a histogram.
    """
    ordered = np.sort(scores.astype(np.float64))
    count = np.arange(1, len(ordered))
    below = np.cumsum(ordered)[:-1] / count
    above = (ordered.sum() - np.cumsum(ordered)[:-1]) / (len(ordered) - count)
    between = count * (len(ordered) - count) * (above - below) ** 2 / len(ordered) ** 2
    between[ordered[1:] == ordered[:-1]] = 0  # a split inside a tie is none
    if not len(between) or not between.max() > 0:
        return float(ordered[0]), 0.0
    best = int(between.argmax())
    return float(ordered[best + 1]), float(between[best] / ordered.var())
