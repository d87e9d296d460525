"""What a recipe says of pretraining, and the way in."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from models.zoo import ZOO
from vlmflow.artifacts.dataset import Dataset
from vlmflow.training.config import TrainingConfig
from vlmflow.training.launcher import spread
from vlmflow.training.pretraining.augmentation import AugmentConfig, ViewConfig


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """What to pretrain, and for how long.

    `model` holds sizes by the names of the family's builder. `start` goes on from weights that are there: a folder, or
    a name on the Hugging Face hub. `shuffle_pairs` trains the control: what belongs together is dealt at
    random (see `control.py`).

    What follows is off unless it is given. `augment` changes pictures each time they are seen, `views` says how for
    the two that SLIP compares. `negatives` captions that are nearly right stand against every caption. `mining` is
    the share of a batch whose captions are alike. `max_logit_scale` bounds the factor on cosines after every step.
    `ema` is the decay of the weights' moving average, which is then what is kept. `drop_patches` is the share of the
    patches that a picture tower does not see while it learns.
    """

    family: str = "sketch-dual"
    start: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    shuffle_pairs: bool = False
    augment: AugmentConfig | None = None
    views: ViewConfig | None = None
    negatives: int = 0
    mining: float = 0.0
    max_logit_scale: float | None = None
    ema: float | None = None
    drop_patches: float = 0.0

    def __post_init__(self) -> None:
        if self.family not in ZOO:
            raise ValueError(f"family {self.family!r} is not in the zoo: {', '.join(ZOO)}")
        if self.start is not None and self.model:
            raise ValueError(f"start {self.start!r} brings its sizes with it; leave model out")
        if self.training.save_every and self.training.trainer.get("dataloader_num_workers"):
            raise ValueError("save_every needs dataloader_num_workers 0: a worker's draws cannot be repeated")
        if self.negatives < 0:
            raise ValueError(f"negatives must not be negative, got {self.negatives}")
        if not 0 <= self.mining <= 1:
            raise ValueError(f"mining is a share from 0 to 1, got {self.mining}")
        if self.max_logit_scale is not None and self.max_logit_scale < 1:
            raise ValueError(f"max_logit_scale must be at least 1, got {self.max_logit_scale}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema is a decay between 0 and 1, got {self.ema}")
        if not 0 <= self.drop_patches < 1:
            raise ValueError(f"drop_patches is a share from 0 to below 1, got {self.drop_patches}")

    def plain(self) -> dict[str, Any]:
        """The section as JSON holds it."""
        return asdict(self)


def pretrain(*, pairs: Path, conversations: Path | None, out: Path, section: PretrainConfig) -> None:
    """Train a family of the zoo and write a checkpoint to `out`.

    Args:
        pairs: the dataset of schema `pairs`; its training split is learned from.
        conversations: the task sets, whose words the vocabulary must hold for the stages to come.

    Raises:
        DataError: fewer captioned pairs than one batch.
    """
    from vlmflow.training.pretraining.training import train  # not for reading a recipe

    spread("pretrain", train, section.training, pairs, corpus(pairs, conversations), section, out=out)


def corpus(pairs: Path, conversations: Path | None) -> list[str]:
    """The training split's texts, for a vocabulary: captions, phrases, questions and answers."""
    texts: list[str] = []
    for row in Dataset(pairs, "pairs").rows(["caption", "regions", "split"]):
        if row["split"] == "train":
            texts.append(row["caption"])
            texts += [region["phrase"] for region in row["regions"] or []]
    if conversations is not None:
        for row in Dataset(conversations, "conversations").rows(["messages", "task", "split"]):
            if row["split"] == "train":
                # What is read is spelled: a line's words are no vocabulary.
                role = "user" if row["task"] in ("ocr", "ground") else None
                texts += [m["content"] for m in row["messages"] if role in (None, m["role"])]
    return texts
