"""What a recipe says of pretraining, and the way in."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from components.budget import Training
from components.dataset import Dataset
from components.launch import launch
from models.zoo import ZOO


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """What to pretrain, and for how long.

    `model` holds sizes by the names of the family's builder. `start` goes on from weights that are there: a folder, or
    a name on the Hugging Face hub. `shuffle_pairs` trains the control: every picture with another one's caption.
    """

    family: str = "sketch-dual"
    start: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    training: Training = field(default_factory=Training)
    shuffle_pairs: bool = False

    def __post_init__(self) -> None:
        if self.family not in ZOO:
            raise ValueError(f"family {self.family!r} is not in the zoo: {', '.join(ZOO)}")
        if self.start is not None and self.model:
            raise ValueError(f"start {self.start!r} brings its sizes with it; leave model out")

    def plain(self) -> dict[str, Any]:
        """The section as JSON holds it."""
        return asdict(self)


def pretrain(*, pairs: Path, conversations: Path | None, out: Path, section: Pretraining) -> None:
    """Train a family of the zoo and write a checkpoint to `out`.

    Args:
        pairs: the dataset of schema `pairs`; its training split is learned from.
        conversations: the task sets, whose words the vocabulary must hold for the stages to come.

    Raises:
        DataError: fewer captioned pairs than one batch.
    """
    from components.pretrain.training import train  # not for reading a recipe

    launch(train, section.training.processes, str(pairs), corpus(pairs, conversations), str(out), section)


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
                role = "user" if row["task"] in ("read", "ground") else None
                texts += [m["content"] for m in row["messages"] if role in (None, m["role"])]
    return texts
